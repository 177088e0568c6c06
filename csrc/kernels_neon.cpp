#include "simd/neon.h"

namespace pellucid {
namespace {

// 32 registers: a strip is four vectors, so 4 x 4 dot products, four of weights and what is left for x; the 4 x 4 sums come
// and go once per group. 6 x 4 sums of floats.
constexpr int kQuantTileRows = 4, kQuantTileStrips = 1;
constexpr int kFloatTileRows = 6, kFloatTileStrips = 1;

}  // namespace
}  // namespace pellucid

#include "ops/gemm_float.h"
#include "ops/gemm_quant.h"
#include "ops/quantize_blocks.h"

namespace pellucid {

const KernelTable kNeonKernels = {quantize_blocks_impl, gemm_quant_impl, gemm_float_impl};

}  // namespace pellucid
