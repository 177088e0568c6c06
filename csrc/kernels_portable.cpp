#include "simd/portable.h"

namespace pellucid {
namespace {

// A strip is four vectors. Targets have 16 (x86-64) or 32 (ARM) registers.
constexpr int kQuantTileRows = 2, kQuantTileStrips = 1;
constexpr int kFloatTileRows = 2, kFloatTileStrips = 1;

}  // namespace
}  // namespace pellucid

#include "ops/gemm_float.h"
#include "ops/gemm_quant.h"
#include "ops/quantize_blocks.h"

namespace pellucid {

const KernelTable kPortableKernels = {quantize_blocks_impl, gemm_quant_impl, gemm_float_impl};

}  // namespace pellucid
