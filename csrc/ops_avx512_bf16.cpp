#include "simd/avx512.h"

#include "simd/int8_dots.h"

#include "simd/bfloat16_pairs.h"

#include "ops/op_table_entries.h"

namespace pellucid {

const OpTable kAvx512Bf16Ops = PELLUCID_OP_TABLE;

}  // namespace pellucid
