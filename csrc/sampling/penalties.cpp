#include "sampling.h"

namespace pellucid {
namespace {

float penalised(float x, float generated, const RowPenalties& p) {
    x = x > 0.0f ? x / p.repetition : x * p.repetition;
    x -= p.frequency * generated;
    return x - (generated > 0.0f ? p.presence : 0.0f);
}

class PenaltyJob final : public Job {
public:
    PenaltyJob(const Logits& logits, const std::vector<RowPenalties>& penalties)
        : logits_(logits), penalties_(penalties) {}

    uint32_t num_stages() const override { return 1; }
    uint32_t num_tasks(uint32_t) override { return static_cast<uint32_t>(penalties_.size()); }
    void run(uint32_t, uint32_t task, uint32_t) noexcept override {
        const RowPenalties& p = penalties_[task];
        float* row = logits_.row(p.row);
        for (int64_t i = 0; i < p.count; ++i) {
            float& x = row[p.token_ids[i]];
            x = penalised(x, p.generated[i], p);
        }
    }

private:
    const Logits logits_;
    const std::vector<RowPenalties>& penalties_;
};

}  // namespace

void penalise(ThreadTeam& team, const Logits& logits, const std::vector<RowPenalties>& penalties) {
    PenaltyJob job(logits, penalties);
    team.run(job);
}

}  // namespace pellucid
