// Selection over a row of logits without sorting it. See sampling_ops.h for groups and their peaks.

#pragma once

#include <cstdint>

#include "sampling_ops.h"

namespace pellucid {

// A row without NaN and +inf, and what is known of it.
struct PeakedRow {
    const float* x;      // [n]
    int64_t n;
    const float* peaks;  // [groups_of(n)]
    float best;          // the largest; finite
};

// The first place of the largest logit.
int64_t first_of_largest(const PeakedRow& row);

// The k-th largest logit, 1 <= k <= n. `room` holds n floats.
float kth_largest(const PeakedRow& row, int64_t k, float* room);

// Ids of the k largest, 0 <= k <= n: best first, the lower id first among equals. `room` as above.
void largest_ids(const PeakedRow& row, int64_t k, float* room, int64_t* ids);

}  // namespace pellucid
