// Choice of instruction set, and the work per call that is the same for all of them.

#include <cmath>
#include <cstring>
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

// One tile's rows in the order in which its kernel reads them: see kernel_table.h.
void write_panel(const QuantRows& x, int64_t k, const WeightFormat& format, int64_t row, int64_t rows, std::byte* out) {
    const int64_t blocks = k / kActivationGroup;
    const int64_t groups = kActivationGroup / format.group;
    for (int64_t block = 0; block < blocks; ++block) {
        std::byte* scales = out + rows * kActivationGroup;
        std::byte* corrections = scales + rows * 4;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t source = (row + r) * blocks + block;
            std::memcpy(out + r * kActivationGroup, x.q + source * kActivationGroup, kActivationGroup);
            const float scale = x.scale[source];
            std::memcpy(scales + r * 4, &scale, 4);
            const int32_t* sum16 = x.sum16 + source * 2;
            for (int64_t g = 0; g < groups; ++g) {
                const int32_t sum = groups == 2 ? sum16[g] : sum16[0] + sum16[1];
                std::byte* correction = corrections + (g * rows + r) * 4;
                if (format.has_minima) {
                    const float scaled_sum = scale * static_cast<float>(sum);
                    std::memcpy(correction, &scaled_sum, 4);
                } else {
                    const int32_t start = -format.zero * sum;
                    std::memcpy(correction, &start, 4);
                }
            }
        }
        out += rows * panel_bytes_per_row_block(format.group);
    }
}

const std::byte* write_panels(const PackedWeight& w, const QuantRows& x, int64_t rows, int64_t max_rows) {
    const int64_t bytes_per_row = w.k / kActivationGroup * panel_bytes_per_row_block(w.format.group);
    std::byte* const panels = thread_scratch<std::byte>(rows * bytes_per_row);
    const RowTiles tiles(rows, max_rows);
    for (int64_t t = 0, row = 0; t < tiles.count; row += tiles.size(t), ++t)
        write_panel(x, w.k, w.format, row, tiles.size(t), panels + row * bytes_per_row);
    return panels;
}

}  // namespace

const KernelTable& kernels() {
#if defined(__x86_64__)
    switch (active_isa()) {
        case Isa::Avx512: return kAvx512Kernels;
        case Isa::Avx2Vnni: return kAvx2VnniKernels;
        case Isa::Avx2: return kAvx2Kernels;
        case Isa::Portable: break;
    }
#endif
    return kPortableKernels;
}

size_t PackedWeight::bytes() const { return static_cast<size_t>(strip_count(n) * strip_layout(k, format).bytes); }

void quantize_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, QuantRows out) {
    kernels().quantize_rows(x, x_stride, rows, k, out);
}

void gemm(const PackedWeight& w, const QuantRows& x, int64_t rows, float* y, int64_t y_stride, const float* bias,
          int64_t col_begin, int64_t col_end) {
    if (rows == 0 || col_begin >= col_end) return;
    const KernelTable& table = kernels();
    QuantGemm call{};
    call.format = w.format;
    call.layout = strip_layout(w.k, w.format);
    call.strips = w.data.get();
    call.n = w.n;
    call.k = w.k;
    call.strip_begin = col_begin / kStripColumns;
    call.strip_end = strip_count(col_end);
    call.panels = write_panels(w, x, rows, table.quant_tile_rows);
    call.rows = rows;
    call.y = y;
    call.y_stride = y_stride;
    call.bias = bias;
    call.scratch = thread_scratch<float>(quant_scratch_floats(w.k, w.format.group));
    table.gemm_quant(call);
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
    if (w.format.round_activations && active_isa() == Isa::Avx512 && cpu_features().avx512_bf16) {
        call.scratch = thread_scratch<uint16_t>(rows * w.k);
        return gemm_bfloat16_dot_avx512(call);
    }
#endif
    kernels().gemm_float(call);
}

}  // namespace pellucid
