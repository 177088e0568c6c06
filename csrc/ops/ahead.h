// Fetching what is needed later while something else is computed.

#pragma once

#include "../kernel_table.h"

namespace pellucid {
namespace {

// Of the next strips of a weight. The hardware's own prefetching starts anew with every strip and knows nothing of the
// rows that are still to be done with the present one. So `bytes` from `next` are fetched into the L2 cache, spread
// evenly over `steps` calls of fetch(). Past the end of the weight this is harmless.
class Ahead {
public:
    Ahead(const std::byte* next, int64_t bytes, int64_t steps)
        : next_(next), lines_per_step_((bytes / kLine + steps - 1) / steps) {}

    void fetch() {
        for (int64_t i = 0; i < lines_per_step_; ++i, next_ += kLine) __builtin_prefetch(next_, 0, 2);
    }
    // Tiles take a copy each; this moves on past the steps of one tile.
    void skip(int64_t steps) { next_ += steps * lines_per_step_ * kLine; }

private:
    const std::byte* next_;
    int64_t lines_per_step_;
};

inline void fetch(Meanwhile& m) {
    constexpr int64_t kLines = 2;  // of each pool; at 32 rows so all of a step's keys and values arrive in time
    if (m.block == m.num_blocks) return;
    const int64_t place = m.blocks[m.block] * m.block_bytes + m.byte;
    for (const std::byte* pool : m.pools)
        for (int64_t i = 0; i < kLines; ++i) __builtin_prefetch(pool + place + i * kLine, 0, 2);
    m.byte += kLines * kLine;
    if (m.byte < m.block_bytes) return;
    m.byte = 0;
    ++m.block;
}

}  // namespace
}  // namespace pellucid
