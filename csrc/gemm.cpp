// Choice of instruction set, and the work per call that is the same for all of them.

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_features.h"
#include "kernel_table.h"

namespace pellucid {
namespace {

// Memory a thread reuses from call to call. It only grows.
template <class T>
T* thread_scratch(int64_t count) {
    thread_local std::vector<T> memory;
    if (static_cast<int64_t>(memory.size()) < count) memory.resize(static_cast<size_t>(count));
    return memory.data();
}

}  // namespace

const KernelTable& kernels() {
    switch (active_isa()) {
#if defined(__x86_64__)
        case Isa::Avx512Bf16:
        case Isa::Avx512: return kAvx512Kernels;
        case Isa::Avx2Vnni: return kAvx2VnniKernels;
        case Isa::Avx2: return kAvx2Kernels;
#elif defined(__aarch64__)
        case Isa::Neon: return kNeonKernels;
#endif
        default: return kPortableKernels;
    }
}

size_t PackedWeight::bytes() const { return static_cast<size_t>(strip_count(n) * strip_layout(k, format).bytes); }

void quantize(const float* x, int64_t begin, int64_t count, const QuantRows& out, int64_t row) {
    kernels().quantize_blocks(x, begin, count, *out.outliers, out.blocks(row), out.outlier_values(row));
}

void gemm(const PackedWeight& w, const QuantRows& x, int64_t rows, float* y, int64_t y_stride, const float* bias,
          int64_t col_begin, int64_t col_end, Meanwhile* meanwhile) {
    if (rows == 0 || col_begin >= col_end) return;
    QuantGemm call{};
    call.format = w.format;
    call.layout = strip_layout(w.k, w.format);
    call.strips = w.data.get();
    call.n = w.n;
    call.k = w.k;
    call.strip_begin = col_begin / kStripColumns;
    call.strip_end = strip_count(col_end);
    call.x = x.data;
    call.x_stride = QuantRows::row_bytes(w.k);
    call.outliers = *x.outliers;
    call.rows = rows;
    call.y = y;
    call.y_stride = y_stride;
    call.bias = bias;
    call.scratch = thread_scratch<float>(quant_scratch_floats(w.k, w.format.group));
    call.meanwhile = meanwhile;
    kernels().gemm_quant(call);
}

void gemm_float(const PackedWeight& w, const float* x, int64_t x_stride, int64_t rows, float* y, int64_t y_stride,
                const float* bias, int64_t col_begin, int64_t col_end) {
    if (rows == 0 || col_begin >= col_end) return;
    FloatGemm call{};
    call.format = w.format;
    call.layout = strip_layout(w.k, w.format);
    call.strips = w.data.get();
    call.n = w.n;
    call.k = w.k;
    call.strip_begin = col_begin / kStripColumns;
    call.strip_end = strip_count(col_end);
    call.x = x;
    call.x_stride = x_stride;
    call.rows = rows;
    call.y = y;
    call.y_stride = y_stride;
    call.bias = bias;
#if defined(__x86_64__)
    if (w.format.round_activations && active_isa() == Isa::Avx512Bf16) {
        call.scratch = thread_scratch<uint16_t>(rows * w.k);
        return gemm_bfloat16_dot_avx512(call);
    }
#endif
    kernels().gemm_float(call);
}

}  // namespace pellucid
