// Which columns of the inputs of quantised products are outliers.

#pragma once

#include "kernels.h"

namespace pellucid {

// Those whose squares add up to the most, of `count` columns; none of which all are zero. At most one in 32: products pay
// for each of them.
Outliers largest_columns(const double* energies, int64_t count);

}  // namespace pellucid
