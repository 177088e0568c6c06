// Compiled twice: with and without AVX-VNNI.
#include "simd/avx2.h"

namespace pellucid {
namespace {

// 16 registers: a strip is two vectors, so 3 x 2 dot products and 3 x 2 sums.
constexpr int kQuantTileRows = 3, kQuantTileStrips = 1;
constexpr int kFloatTileRows = 6, kFloatTileStrips = 1;

}  // namespace
}  // namespace pellucid

#include "ops/gemm_float.h"
#include "ops/gemm_quant.h"
#include "ops/quantize_blocks.h"

namespace pellucid {

#if defined(__AVXVNNI__)
const KernelTable kAvx2VnniKernels = {quantize_blocks_impl, gemm_quant_impl, gemm_float_impl};
#else
const KernelTable kAvx2Kernels = {quantize_blocks_impl, gemm_quant_impl, gemm_float_impl};
#endif

}  // namespace pellucid
