#include <cmath>
#include <limits>

#include "op_table.h"
#include "sampling/rows_job.h"

namespace pellucid {
namespace {

class LogprobsJob final : public RowsJob {
public:
    LogprobsJob(const Logits& logits, uint32_t num_threads, const int64_t* token_ids, const LogprobsOut& out)
        : RowsJob(logits, num_threads), token_ids_(token_ids), out_(out) {}

private:
    void settle(RowWork& work) override { work.temperature = 1.0f; }

    void conclude(RowWork& work) override {
        const int64_t i = work.index, num_top = out_.num_top;
        const float* x = work.row.x;
        int64_t* ids = out_.top_ids + i * num_top;
        if (!work.finite) return fail(i);
        double total = 0.0;
        for (int64_t g = 0; g < work.num_groups; ++g) total += work.masses[g];
        const double normaliser = work.row.best + std::log(total);
        const auto logprob = [&](int64_t id) { return static_cast<float>(x[id] - normaliser); };
        const float chosen = x[token_ids_[i]];
        const float beyond = std::nextafter(chosen, INFINITY);
        out_.chosen[i] = logprob(token_ids_[i]);
        out_.rank[i] = 1 + ops().sampling.count_at_least(x, work.row.n, beyond);
        largest_ids(work.row, num_top, work.weights, ids);
        for (int64_t k = 0; k < num_top; ++k) out_.top[i * num_top + k] = logprob(ids[k]);
    }

    void fail(int64_t i) const {
        constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
        out_.chosen[i] = kNaN;
        out_.rank[i] = 1;
        for (int64_t k = 0; k < out_.num_top; ++k) {
            out_.top_ids[i * out_.num_top + k] = k;
            out_.top[i * out_.num_top + k] = kNaN;
        }
    }

    const int64_t* const token_ids_;
    const LogprobsOut out_;
};

}  // namespace

void logprobs(ThreadTeam& team, const Logits& logits, const int64_t* token_ids, const LogprobsOut& out) {
    LogprobsJob job(logits, team.size(), token_ids, out);
    team.run(job);
}

}  // namespace pellucid
