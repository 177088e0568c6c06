#include "simd/portable.h"

#include "ops/op_table_entries.h"

namespace pellucid {

const OpTable kPortableOps = PELLUCID_OP_TABLE;

}  // namespace pellucid
