// Work on the rows of a batch of logits, cut up for a thread team. Per row, in this order:
//
//     scan      peaks of all groups                          per group
//     settle    what is known without looking at all logits  once: the subclass
//     weigh     exp((logit - best) / temperature)            per group
//     conclude                                               once: the subclass
//
// With at least as many rows as threads a row is one task, so that it stays in its core's cache. With fewer, the
// groups of a row are shared, and each of the four is a stage.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sampling.h"
#include "sampling/selection.h"

namespace pellucid {

struct RowWork {
    PeakedRow row;
    int64_t index;       // among the logits
    int64_t num_groups;
    bool finite;         // it has a finite largest logit, and neither NaN nor +inf
    float temperature;   // set by `settle`; 0: no weights are wanted
    float floor;         // likewise; less likely logits weigh nothing
    float* peaks;        // [num_groups]
    float* masses;       // [num_groups]
    float* above;        // [num_groups] room for the subclass
    float* weights;      // [num_groups * kGroup]; before `weigh`, room
};

class RowsJob : public Job {
public:
    RowsJob(const Logits& logits, uint32_t num_threads);

    uint32_t num_stages() const final { return parts_ == 1 ? 1 : 4; }
    uint32_t num_tasks(uint32_t stage) final;
    void run(uint32_t stage, uint32_t task, uint32_t thread) noexcept final;

protected:
    virtual void settle(RowWork& work) = 0;  // called only if the row is finite
    virtual void conclude(RowWork& work) = 0;

private:
    void begin(RowWork& work, int64_t index) const;
    void scan(RowWork& work, int64_t part) const;
    void find_best(RowWork& work);
    void weigh(const RowWork& work, int64_t part) const;

    const Logits logits_;
    const int64_t num_groups_;
    int64_t parts_;               // of a row
    std::unique_ptr<float[]> memory_;
    std::vector<RowWork> works_;  // one per thread, or one per row if rows are cut
};

}  // namespace pellucid
