// Ops on single rows, of lengths around those of vectors, against their definitions in double.

#include <cmath>
#include <functional>

#include "op_table.h"
#include "tools/check.h"

namespace pellucid::check {

namespace {

using Row = std::vector<float>;
using Function = std::function<double(double)>;

std::vector<double> each(const Row& a, const Row& b, const std::function<double(double, double)>& f) {
    std::vector<double> out;
    for (size_t i = 0; i < a.size(); ++i) out.push_back(f(a[i], b[i]));
    return out;
}

std::vector<double> normalised(const Row& x, const Row& weight, const Row* bias, double eps) {
    double mean = 0, square = 0;
    for (const float v : x) mean += v / static_cast<double>(x.size());
    if (!bias) mean = 0;
    for (const float v : x) square += (v - mean) * (v - mean) / static_cast<double>(x.size());
    std::vector<double> out;
    for (size_t i = 0; i < x.size(); ++i)
        out.push_back((x[i] - mean) / std::sqrt(square + eps) * weight[i] + (bias ? (*bias)[i] : 0.0));
    return out;
}

void check_norms(int64_t n) {
    const Row x = random_floats(n), weight = random_floats(n), bias = random_floats(n);
    Row out(x.size());
    ops().rms_norm(x.data(), weight.data(), 1e-5f, out.data(), n);
    expect_close("rms_norm", out, normalised(x, weight, nullptr, 1e-5), 1e-5);
    ops().layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, out.data(), n);
    expect_close("layer_norm", out, normalised(x, weight, &bias, 1e-5), 1e-5);
    ops().add(x.data(), bias.data(), out.data(), n);
    expect_close("add", out, each(x, bias, std::plus<>()), 1e-6);
    ops().scale(x.data(), 3.0f, out.data(), n);
    expect_close("scale", out, each(x, x, [](double a, double) { return 3 * a; }), 1e-6);
}

void check_activations(int64_t n) {
    const Row x = random_floats(n), up = random_floats(n);
    Row out(x.size());
    const Function silu = [](double v) { return v / (1 + std::exp(-v)); };
    const Function gelu = [](double v) { return 0.5 * v * (1 + std::erf(v * std::sqrt(0.5))); };
    const Function gelu_tanh = [](double v) {
        return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    };
    const auto gated = [&](const char* name, auto op, const Function& f) {
        op(x.data(), up.data(), out.data(), n);
        expect_close(name, out, each(x, up, [&](double a, double b) { return f(a) * b; }), 1e-5);
    };
    const auto plain = [&](const char* name, auto op, const Function& f) {
        op(x.data(), out.data(), n);
        expect_close(name, out, each(x, x, [&](double a, double) { return f(a); }), 1e-5);
    };
    gated("silu_mul", ops().silu_mul, silu);
    gated("gelu_mul", ops().gelu_mul, gelu);
    gated("gelu_tanh_mul", ops().gelu_tanh_mul, gelu_tanh);
    plain("gelu", ops().gelu, gelu);
    plain("gelu_tanh", ops().gelu_tanh, gelu_tanh);
    ops().softcap(x.data(), 0.5f, out.data(), n);
    expect_close("softcap", out, each(x, x, [](double a, double) { return 0.5 * std::tanh(2 * a); }), 1e-5);
}

void check_rotation(int64_t half, int64_t n) {
    const Row x = random_floats(n), cosine = random_floats(half), sine = random_floats(half);
    Row out(x.size());
    std::vector<double> expected(x.begin(), x.end());
    for (int64_t i = 0; i < half; ++i) {
        expected[i] = double{x[i]} * cosine[i] - double{x[half + i]} * sine[i];
        expected[half + i] = double{x[half + i]} * cosine[i] + double{x[i]} * sine[i];
    }
    ops().rotate(x.data(), cosine.data(), sine.data(), half, out.data(), n);
    expect_close("rotate", out, expected, 1e-5);
}

void check_rounding(int64_t n) {
    const Row x = random_floats(n);
    std::vector<uint16_t> narrow(x.size());
    Row wide(x.size());
    const std::vector<double> expected(x.begin(), x.end());
    ops().to_bfloat16(x.data(), narrow.data(), n);
    for (size_t i = 0; i < x.size(); ++i)
        wide[i] = std::ldexp(1 + (narrow[i] & 127) / 128.0f, (narrow[i] >> 7 & 255) - 127) * (x[i] < 0 ? -1.0f : 1.0f);
    expect_close("to_bfloat16", wide, expected, 1.0 / 256);
    ops().to_float16(x.data(), narrow.data(), n);
    for (size_t i = 0; i < x.size(); ++i) {
        const int exponent = narrow[i] >> 10 & 31, mantissa = narrow[i] & 1023;
        wide[i] = std::ldexp((exponent ? 1024 : 0) + mantissa, (exponent ? exponent : 1) - 25) * (x[i] < 0 ? -1 : 1);
    }
    expect_close("to_float16", wide, expected, 1.0 / 2048);
    std::vector<int8_t> bytes(x.size());
    float scale = 0;
    ops().to_int8(x.data(), bytes.data(), &scale, n);
    for (size_t i = 0; i < x.size(); ++i) wide[i] = scale * bytes[i];
    expect_close("to_int8", wide, expected, 0.51 / 127);
}

void check_hadamard(int64_t n) {
    const Row x = random_floats(n);
    const int64_t size = n & -n;
    std::vector<double> expected(x.size());
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i / size * size; j < i / size * size + size; ++j)
            expected[i] += (__builtin_popcountll(i & j & (size - 1)) % 2 ? -x[j] : x[j]) / std::sqrt(size);
    Row out(x.size());
    ops().hadamard(x.data(), out.data(), n);
    expect_close("hadamard", out, expected, 1e-5);
}

}  // namespace

void check_row_ops() {
    for (const int64_t n : {0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 48, 100}) {
        check_activations(n);
        check_rounding(n);
        if (n == 0) continue;
        check_norms(n);
        for (const int64_t half : {int64_t{0}, n / 4, n / 2}) check_rotation(half, n);
    }
    for (const int64_t n : {16, 32, 48, 64, 80, 96, 128, 256}) check_hadamard(n);
}

}  // namespace pellucid::check
