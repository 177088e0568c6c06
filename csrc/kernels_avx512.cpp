#include "simd/avx512.h"

namespace pellucid {
namespace {

// 32 registers: 6 x 2 dot products, 6 x 2 sums, the weights of two strips and what is left for x.
constexpr int kQuantTileRows = 6, kQuantTileStrips = 2;
constexpr int kFloatTileRows = 12, kFloatTileStrips = 2;

}  // namespace
}  // namespace pellucid

#include "ops/gemm_float.h"
#include "ops/gemm_quant.h"
#include "ops/quantize_blocks.h"

namespace pellucid {

const KernelTable kAvx512Kernels = {quantize_blocks_impl, gemm_quant_impl, gemm_float_impl};

}  // namespace pellucid
