#include "simd/neon.h"

#include "ops/op_table_entries.h"

namespace pellucid {

const OpTable kNeonOps = PELLUCID_OP_TABLE;

}  // namespace pellucid
