#include <algorithm>
#include <cmath>

#include "op_table.h"
#include "sampling/philox.h"
#include "sampling/rows_job.h"

namespace pellucid {
namespace {

constexpr double kBelowOne = 1.0 - 0x1p-52;

// Draws from those of a row's weights that exceed a bound, which rises as the draw narrows down on the nucleus.
class Draw {
public:
    explicit Draw(const RowWork& work) : work_(work) { std::copy_n(work.masses, work.num_groups, work.above); }

    double total() const {
        double sum = 0.0;
        for (int64_t g = 0; g < work_.num_groups; ++g) sum += work_.above[g];
        return sum;
    }

    void raise_bound(float bound) {
        bound_ = bound;
        ops().sampling.masses_above(work_.weights, work_.masses, work_.num_groups, bound, work_.above);
    }

    // The id where the running total of the weights exceeds `number` times their total: the group first, then the id in
    // it, so that nothing is summed over the whole vocabulary one by one.
    int64_t inverse_cdf(double number, double total) const {
        const double target = number * total;
        double begin = 0.0, end = 0.0;
        int64_t group = 0, last = 0;  // last: where rounding leaves nothing beyond the target
        for (; group < work_.num_groups; ++group) {
            if (work_.above[group] == 0.0f) continue;
            begin = end;
            end += work_.above[group];
            last = group;
            if (end > target) break;
        }
        return place_in(last, std::clamp((target - begin) / (end - begin), 0.0, kBelowOne));
    }

private:
    int64_t place_in(int64_t group, double share) const {
        const float* weights = work_.weights + group * kGroup;
        double total = 0.0, running = 0.0;
        for (int64_t i = 0; i < kGroup; ++i) total += weight(weights[i]);
        int64_t last = 0;
        for (int64_t i = 0; i < kGroup; ++i) {
            if (weight(weights[i]) == 0.0f) continue;
            running += weights[i];
            last = i;
            if (running > share * total) break;
        }
        return group * kGroup + last;
    }
    float weight(float w) const { return w > bound_ ? w : 0.0f; }

    const RowWork& work_;
    float bound_ = 0.0f;
};

class SampleJob final : public RowsJob {
public:
    SampleJob(const Logits& logits, const SamplingColumns& columns, uint32_t num_threads, int64_t* token_ids,
              bool* failed)
        : RowsJob(logits, num_threads), columns_(columns), token_ids_(token_ids), failed_(failed) {}

private:
    void settle(RowWork& work) override {
        const int64_t row = columns_.rows[work.index];
        work.temperature = columns_.temperature[row];
        if (work.temperature == 0.0f) return;
        const float min_p = columns_.min_p[row], best = work.row.best;
        const int64_t k = columns_.top_k[row];
        if (min_p > 0.0f) work.floor = best + work.temperature * std::log(min_p);
        if (k > 0 && k < work.row.n) work.floor = std::max(work.floor, kth_largest(work.row, k, work.weights));
    }

    void conclude(RowWork& work) override {
        failed_[work.index] = !work.finite;
        if (!work.finite) {
            token_ids_[work.index] = 0;
        } else if (work.temperature == 0.0f) {
            token_ids_[work.index] = first_of_largest(work.row);
        } else {
            token_ids_[work.index] = draw(work);
        }
    }

    // A token belongs to the nucleus if those strictly likelier hold less than top_p of the row. One that does not is
    // drawn again, with the next number, among those likelier than it.
    int64_t draw(const RowWork& work) const {
        const int64_t row = columns_.rows[work.index];
        const auto number = [&](uint32_t draw) { return uniform(columns_.seed[row], columns_.position[row], draw); };
        Draw candidates(work);
        double total = candidates.total();
        int64_t token = candidates.inverse_cdf(number(0), total);
        if (columns_.top_p[row] >= 1.0f) return token;
        const double capacity = double{columns_.top_p[row]} * total;
        for (uint32_t draw = 1;; ++draw) {
            candidates.raise_bound(work.weights[token]);
            total = candidates.total();
            if (total < capacity || total == 0.0) return token;
            token = candidates.inverse_cdf(number(draw), total);
        }
    }

    const SamplingColumns columns_;
    int64_t* const token_ids_;
    bool* const failed_;
};

}  // namespace

void sample(ThreadTeam& team, const Logits& logits, const SamplingColumns& columns, int64_t* token_ids, bool* failed) {
    SampleJob job(logits, columns, team.size(), token_ids, failed);
    team.run(job);
}

}  // namespace pellucid
