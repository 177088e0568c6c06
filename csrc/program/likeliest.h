// The likeliest token of each row, found as the head's product leaves its columns: logits that are wanted for nothing
// else need not be stored, which for a large vocabulary takes longer than to look at them while they are in the cache.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pellucid {

// Of one row, as far as it was looked at.
struct Likeliest {
    float logit = -__builtin_inff();
    int64_t id = 0;       // the lowest of equals
    bool broken = false;  // there was NaN or +inf

    // Logits x of the ids from `first` on.
    void look(const float* x, int64_t first, int64_t count);
    void add(const Likeliest& other);

    bool found() const { return !broken && logit > -__builtin_inff(); }
};

// Each thread looks for itself.
class LikeliestOfThreads {
public:
    LikeliestOfThreads(int64_t rows, uint32_t threads)
        : stride_(rows + kApart), all_(static_cast<size_t>(stride_ * threads)) {}

    Likeliest& at(int64_t row, uint32_t thread) { return all_[static_cast<size_t>(stride_ * thread + row)]; }
    // A row without a finite largest logit fails; its token is 0. As sampling.h has it.
    void tell(int64_t rows, int64_t* token_ids, bool* failed) const;

private:
    static constexpr int64_t kApart = 4;  // so that threads write to cache lines of their own

    int64_t stride_;
    std::vector<Likeliest> all_;
};

}  // namespace pellucid
