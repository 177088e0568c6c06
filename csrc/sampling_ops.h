// What sampling needs of each instruction set: a member of OpTable. The rules of kernel_table.h hold here too.
//
// A row of logits is seen as groups of 128 neighbouring ids; what is computed per group depends on the group alone, so
// a row may be cut between groups in any way. Ids behind the last one, in the last group, count as -inf.

#pragma once

#include <cstdint>

namespace pellucid {

constexpr int64_t kGroup = 128;
constexpr int64_t groups_of(int64_t vocab) { return (vocab + kGroup - 1) / kGroup; }

struct SamplingOps {
    // Largest logit of each of the groups [begin, end) of x[n]; NaN if the group holds NaN or +inf.
    void (*group_peaks)(const float* x, int64_t n, int64_t begin, int64_t end, float* peaks);
    // weights[i] = exp((x[i] - best) / temperature) where x[i] >= floor, otherwise 0; masses[g] is their sum over group
    // g. A group whose peak is below the floor gets the mass 0, and no weights.
    void (*weigh)(const float* x, int64_t n, int64_t begin, int64_t end, float best, float temperature, float floor,
                  const float* peaks, float* weights, float* masses);
    // above[g] = sum of those weights of group g that exceed `bound` >= 0. Groups of mass 0 are not read.
    void (*masses_above)(const float* weights, const float* masses, int64_t groups, float bound, float* above);
    // How many of x[n] are at least `bound`; n <= 2^24.
    int64_t (*count_at_least)(const float* x, int64_t n, float bound);
};

}  // namespace pellucid
