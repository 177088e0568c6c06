#include "sampling/rows_job.h"

#include <algorithm>
#include <cmath>

#include "op_table.h"

namespace pellucid {
namespace {

constexpr int64_t kLeastGroups = 32;  // of a part: some microseconds
enum Stage : uint32_t { kScan, kSettle, kWeigh, kConclude };

}  // namespace

RowsJob::RowsJob(const Logits& logits, uint32_t num_threads) : logits_(logits), num_groups_(groups_of(logits.vocab)) {
    const int64_t rows = std::max<int64_t>(logits.rows, 1);
    parts_ = std::clamp<int64_t>(num_threads / rows, 1, std::max<int64_t>(num_groups_ / kLeastGroups, 1));
    works_.resize(parts_ == 1 ? num_threads : rows);
    const int64_t floats = num_groups_ * (3 + kGroup);
    memory_.reset(new float[works_.size() * floats]);
    float* at = memory_.get();
    for (size_t i = 0; i < works_.size(); ++i, at += floats) {
        works_[i].num_groups = num_groups_;
        works_[i].weights = at;
        works_[i].peaks = at + num_groups_ * kGroup;
        works_[i].masses = works_[i].peaks + num_groups_;
        works_[i].above = works_[i].masses + num_groups_;
        if (parts_ > 1) begin(works_[i], static_cast<int64_t>(i));
    }
}

uint32_t RowsJob::num_tasks(uint32_t stage) {
    const bool shared = parts_ > 1 && (stage == kScan || stage == kWeigh);
    return static_cast<uint32_t>(logits_.rows * (shared ? parts_ : 1));
}

void RowsJob::run(uint32_t stage, uint32_t task, uint32_t thread) noexcept {
    if (parts_ == 1) {
        RowWork& work = works_[thread];
        begin(work, task);
        scan(work, 0);
        find_best(work);
        weigh(work, 0);
        conclude(work);
        return;
    }
    switch (stage) {
        case kScan: return scan(works_[task / parts_], task % parts_);
        case kSettle: return find_best(works_[task]);
        case kWeigh: return weigh(works_[task / parts_], task % parts_);
        default: return conclude(works_[task]);
    }
}

void RowsJob::begin(RowWork& work, int64_t index) const {
    work.index = index;
    work.row = {logits_.row(index), logits_.vocab, work.peaks, 0.0f};
    work.temperature = 0.0f;
    work.floor = -INFINITY;
}

void RowsJob::scan(RowWork& work, int64_t part) const {
    const int64_t begin = num_groups_ * part / parts_, end = num_groups_ * (part + 1) / parts_;
    ops().sampling.group_peaks(work.row.x, work.row.n, begin, end, work.peaks);
}

void RowsJob::find_best(RowWork& work) {
    float best = -INFINITY;
    bool broken = false;
    for (int64_t g = 0; g < num_groups_; ++g) {
        broken |= std::isnan(work.peaks[g]);
        best = std::max(best, work.peaks[g]);
    }
    work.row.best = best;
    work.finite = !broken && best > -INFINITY;
    if (work.finite) settle(work);
}

void RowsJob::weigh(const RowWork& work, int64_t part) const {
    if (work.temperature == 0.0f) return;
    const int64_t begin = num_groups_ * part / parts_, end = num_groups_ * (part + 1) / parts_;
    ops().sampling.weigh(work.row.x, work.row.n, begin, end, work.row.best, work.temperature, work.floor, work.peaks,
                         work.weights, work.masses);
}

}  // namespace pellucid
