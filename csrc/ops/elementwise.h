// Ops on each element of a row: sums, activations, soft caps. Included after a simd header.

#pragma once

#include "vector_math.h"

namespace pellucid {
namespace {

template <class F>
inline void map_row(const float* x, float* out, int64_t n, F f) {
    for_vectors(n, [&](int64_t i, int count) { store_up_to(out + i, f(load_up_to(x + i, count)), count); });
}

template <class F>
inline void map_rows(const float* a, const float* b, float* out, int64_t n, F f) {
    for_vectors(n, [&](int64_t i, int count) {
        store_up_to(out + i, f(load_up_to(a + i, count), load_up_to(b + i, count)), count);
    });
}

inline Float silu(Float x) { return div(x, add(spread(1.0f), exp(sub(spread(0.0f), x)))); }

// x * Phi(x), Phi being the normal distribution.
inline Float exact_gelu(Float x) {
    const Float half = mul(x, spread(0.5f));
    return fma(half, erf(mul(x, spread(0.707106781f))), half);
}

// The same with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for erf (Hendrycks and Gimpel 2016).
inline Float tanh_gelu(Float x) {
    const Float half = mul(x, spread(0.5f));
    const Float inner = fma(mul(mul(x, x), spread(0.044715f)), x, x);
    return fma(half, tanh(mul(inner, spread(0.797884561f))), half);
}

void add_row(const float* a, const float* b, float* out, int64_t n) {
    map_rows(a, b, out, n, [](Float x, Float y) { return add(x, y); });
}
void scale_row(const float* x, float factor, float* out, int64_t n) {
    map_row(x, out, n, [&](Float v) { return mul(v, spread(factor)); });
}
void silu_mul_row(const float* gate, const float* up, float* out, int64_t n) {
    map_rows(gate, up, out, n, [](Float g, Float u) { return mul(silu(g), u); });
}
void gelu_mul_row(const float* gate, const float* up, float* out, int64_t n) {
    map_rows(gate, up, out, n, [](Float g, Float u) { return mul(exact_gelu(g), u); });
}
void gelu_tanh_mul_row(const float* gate, const float* up, float* out, int64_t n) {
    map_rows(gate, up, out, n, [](Float g, Float u) { return mul(tanh_gelu(g), u); });
}
void gelu_row(const float* x, float* out, int64_t n) {
    map_row(x, out, n, [](Float v) { return exact_gelu(v); });
}
void gelu_tanh_row(const float* x, float* out, int64_t n) {
    map_row(x, out, n, [](Float v) { return tanh_gelu(v); });
}
void softcap_row(const float* x, float cap, float* out, int64_t n) {
    map_row(x, out, n, [&](Float v) { return mul(tanh(div(v, spread(cap))), spread(cap)); });
}

}  // namespace
}  // namespace pellucid
