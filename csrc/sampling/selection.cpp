#include "sampling/selection.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "op_table.h"

namespace pellucid {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A float's bits in the order of signed integers, and back.
constexpr int32_t to_key(float value) {
    const auto bits = std::bit_cast<int32_t>(value);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
constexpr float from_key(int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }

// The k-th largest of x[n], which is known to lie from `low` to `high`: the largest value that at least k reach, found
// bit by bit. Passes that only count are so fast that up to 32 of them beat anything that branches on the numbers.
float kth_within(const float* x, int64_t n, int64_t k, float low, float high) {
    int64_t reached = to_key(low), missed = int64_t{to_key(high)} + 1;
    while (missed - reached > 1) {
        const int64_t middle = reached + (missed - reached) / 2;
        const int64_t count = ops().sampling.count_at_least(x, n, from_key(static_cast<int32_t>(middle)));
        (count >= k ? reached : missed) = middle;
    }
    return from_key(static_cast<int32_t>(reached));
}

// Calls f(id) where a logit may be at least `bound`, in ascending order of groups.
template <class F>
void for_groups_reaching(const PeakedRow& row, float bound, F f) {
    for (int64_t g = 0; g < groups_of(row.n); ++g)
        if (row.peaks[g] >= bound)
            for (int64_t i = g * kGroup, end = std::min(i + kGroup, row.n); i < end; ++i) f(i);
}

}  // namespace

int64_t first_of_largest(const PeakedRow& row) {
    int64_t g = 0;
    while (row.peaks[g] != row.best) ++g;
    int64_t i = g * kGroup;
    while (row.x[i] != row.best) ++i;
    return i;
}

float kth_largest(const PeakedRow& row, int64_t k, float* room) {
    const int64_t groups = groups_of(row.n);
    if (k * 4 > groups) return kth_within(row.x, row.n, k, -kInfinity, row.best);
    // The k-th best peak: at least k logits reach it, so that none below it counts.
    const float bound = kth_within(row.peaks, groups, k, -kInfinity, row.best);
    int64_t count = 0;
    for_groups_reaching(row, bound, [&](int64_t i) {
        room[count] = row.x[i];
        count += row.x[i] >= bound;
    });
    return kth_within(room, count, k, bound, row.best);
}

void largest_ids(const PeakedRow& row, int64_t k, float* room, int64_t* ids) {
    if (k == 0) return;
    const float last = kth_largest(row, k, room);
    const float beyond = from_key(to_key(last + 0.0f) + 1);  // + 0: the number after -0 is the one after 0
    int64_t ties = k - ops().sampling.count_at_least(row.x, row.n, beyond);
    int64_t count = 0;
    for_groups_reaching(row, last, [&](int64_t i) {
        const bool tie = row.x[i] == last;
        if (row.x[i] < last || (tie && ties == 0)) return;
        ties -= tie;
        ids[count++] = i;
    });
    std::sort(ids, ids + k, [&](int64_t a, int64_t b) {
        return row.x[a] != row.x[b] ? row.x[a] > row.x[b] : a < b;
    });
}

}  // namespace pellucid
