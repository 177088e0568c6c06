#include "simd/avx2.h"

#include "ops/op_table_entries.h"

namespace pellucid {

const OpTable kAvx2Ops = PELLUCID_OP_TABLE;

}  // namespace pellucid
