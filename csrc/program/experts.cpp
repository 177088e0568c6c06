#include "program/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "program/blocks.h"
#include "program/outliers.h"

namespace pellucid {

namespace {

constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kRowsPerTask = 8;  // that are routed or copied

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

int64_t row_floats(int64_t columns, bool quantised) {
    return quantised ? QuantRows::row_bytes(columns) / int64_t{sizeof(float)} : columns;
}

// Columns [begin, end) of x * w^T for `rows` rows, to `y` [rows, kPartColumns].
void multiply(const PackedWeight& w, const QuantRows& integers, const float* floats, int64_t rows, float* y,
              int64_t begin, int64_t end) {
    // The kernels count columns from 0: they are given the address that column 0 would have.
    if (w.format.quantised()) {
        gemm(w, integers, rows, y - begin, kPartColumns, nullptr, begin, end);
    } else {
        gemm_float(w, floats, w.k, rows, y - begin, kPartColumns, nullptr, begin, end);
    }
}

}  // namespace

void ExpertWeights::check() const {
    require(!gate.empty() && count() <= kMaxExperts, "there are " + std::to_string(count()) + " experts, not 1 to 1024");
    require(up.size() == gate.size() && down.size() == gate.size(), "experts differ in number");
    require(top_k >= 1 && top_k <= count(), "a row chooses 1 to all experts, not " + std::to_string(top_k));
    require(activation.gated(), "experts have a gated activation");
    for (size_t e = 0; e < gate.size(); ++e) {
        for (const PackedWeight* w : {&gate[e], &up[e]}) {
            require(w->n == inner() && w->k == hidden(), "experts differ in shape");
            require(w->format.quantised() == gate[0].format.quantised(),
                    "some experts' gate or up weights are quantised and others are not");
        }
        require(down[e].n == hidden() && down[e].k == inner(), "down does not go back from inner to hidden");
        require(down[e].format.quantised() == down[0].format.quantised(),
                "some experts' down weights are quantised and others are not");
    }
}

Experts::Experts(ExpertWeights weights, int first_workspace) : weights_(std::move(weights)) {
    int buffer = first_workspace;
    const std::vector<int64_t> columns = workspace_columns(weights_);
    auto next = columns.begin();
    for (Columns* workspace : {&choices_, &places_, &gathered_, &inner_}) *workspace = {buffer++, 0, *next++};
    const auto count = static_cast<size_t>(weights_.count());
    outliers_.resize(count);
    first_.resize(count + 1);
    first_task_.resize(count + 1);
}

std::vector<int64_t> Experts::workspace_columns(const ExpertWeights& w) {
    constexpr int64_t kPairFloats = sizeof(Choice) / sizeof(float);
    static_assert(sizeof(Choice) == sizeof(Place));
    return {w.top_k * kPairFloats, w.top_k * kPairFloats,
            w.top_k * row_floats(w.hidden(), w.gate[0].format.quantised()),
            w.top_k * row_floats(w.inner(), w.down[0].format.quantised())};
}

void Experts::visit_reads(const Visitor& visit) {
    visit(x);
    visit(scores);
    if (shared) visit(shared);
    // Between its own stages: so they have a place in the arena.
    for (Columns* workspace : {&choices_, &places_, &gathered_, &inner_}) visit(*workspace);
}

void Experts::visit_writes(const Visitor& visit) {
    visit(out);
    for (Columns* workspace : {&choices_, &places_, &gathered_, &inner_}) visit(*workspace);
}

int64_t Experts::scratch_floats() const { return 3 * kPartFloats; }

uint32_t Experts::num_tasks(const Step& step, uint32_t stage) const {
    const int64_t n = rows(step);
    if (n == 0) return 0;
    const auto shared_out = [&](int64_t items) {
        return std::min(divide_up(items, kRowsPerTask), kTasksPerThread * step.num_threads);
    };
    switch (stage) {
        case kRoute: return static_cast<uint32_t>(shared_out(n));
        case kGroup: return 1;
        // A row that has an expert to itself is read where it is.
        case kGather: return n == 1 ? 0 : static_cast<uint32_t>(shared_out(n * weights_.top_k));
        case kInner: return static_cast<uint32_t>(first_task_.back());
        default: return static_cast<uint32_t>(down_tasks(step));
    }
}

void Experts::run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const {
    const auto for_each = [&](int64_t items, auto&& work) {
        const int64_t tasks = num_tasks(step, stage);
        for (int64_t i = items * task / tasks; i < items * (task + 1) / tasks; ++i) work(i);
    };
    switch (stage) {
        case kRoute: return for_each(rows(step), [&](int64_t row) { route(step, row); });
        case kGroup: return group(step);
        case kGather: return for_each(first_.back(), [&](int64_t place) { gather(step, place); });
        case kInner: return compute_inner(step, task, worker);
        default: return compute_down(step, task, worker);
    }
}

// ---- which rows which expert has ----

// NaN is never chosen before a number, and whatever the scores are, so many different experts are.
void Experts::route(const Step& step, int64_t row) const {
    const float* const score = step.floats(scores).row(row);
    Choice* const chosen = choices(step) + row * weights_.top_k;
    bool taken[kMaxExperts] = {};
    const auto is_better = [&](int64_t e, int64_t than) {
        return than < 0 || score[e] > score[than] || (std::isnan(score[than]) && !std::isnan(score[e]));
    };
    for (int64_t k = 0; k < weights_.top_k; ++k) {
        int64_t best = -1;
        for (int64_t e = 0; e < weights_.count(); ++e)
            if (!taken[e] && is_better(e, best)) best = e;
        taken[best] = true;
        chosen[k].expert = static_cast<int32_t>(best);
    }
    const float largest = score[chosen[0].expert];
    float sum = 0.0f;
    for (int64_t k = 0; k < weights_.top_k; ++k) {
        chosen[k].share = std::exp(score[chosen[k].expert] - largest);
        sum += chosen[k].share;
    }
    if (!weights_.normalise) {
        sum = 0.0f;
        for (int64_t e = 0; e < weights_.count(); ++e) sum += std::exp(score[e] - largest);
    }
    for (int64_t k = 0; k < weights_.top_k; ++k) chosen[k].share /= sum;
}

// Counting sort of all choices by expert; rows stay in order. And the tasks of the inner products: an expert has as many
// as its part of the work is, of which reading its weights is the most while few rows have chosen it.
void Experts::group(const Step& step) const {
    const int64_t pairs = rows(step) * weights_.top_k, experts = weights_.count();
    const Choice* const chosen = choices(step);
    std::fill(first_.begin(), first_.end(), 0);
    for (int64_t i = 0; i < pairs; ++i) ++first_[chosen[i].expert + 1];
    int64_t work = 0;
    const auto work_of = [&](int64_t rows) { return rows ? std::max(rows, kManyRows) : 0; };
    for (int64_t e = 0; e < experts; ++e) work += work_of(first_[e + 1]);
    const int64_t tasks = step.num_threads == 1 ? 1 : kTasksPerThread * step.num_threads;
    first_task_[0] = 0;
    for (int64_t e = 0; e < experts; ++e) {
        const int64_t own = first_[e + 1], blocks = divide_up(weights_.inner(), kBlockColumns);
        const int64_t parts = own ? std::clamp<int64_t>(tasks * work_of(own) / work, 1, blocks) : 0;
        first_task_[e + 1] = first_task_[e] + parts;
        first_[e + 1] += first_[e];
    }
    int64_t next[kMaxExperts];
    std::copy(first_.begin(), first_.end() - 1, next);
    for (int64_t i = 0; i < pairs; ++i)
        places(step)[next[chosen[i].expert]++] = {static_cast<int32_t>(i / weights_.top_k), chosen[i].share};
}

void Experts::gather(const Step& step, int64_t place) const {
    const int64_t row = places(step)[place].row;
    if (takes_integers()) {
        std::memcpy(gathered(step).from(place).data, step.quantised(x.buffer).from(row).data,
                    static_cast<size_t>(QuantRows::row_bytes(weights_.hidden())));
    } else {
        std::memcpy(workspace<float>(step, gathered_) + place * weights_.hidden(), step.floats(x).row(row),
                    static_cast<size_t>(weights_.hidden()) * sizeof(float));
    }
}

QuantRows Experts::gathered(const Step& step) const {
    const Outliers* const outliers = takes_integers() ? step.quantised(x.buffer).outliers : nullptr;
    return {workspace<std::byte>(step, gathered_), weights_.hidden(), outliers};
}

QuantRows Experts::inner_integers(const Step& step, int64_t expert) const {
    return {workspace<std::byte>(step, inner_), weights_.inner(), &outliers_[expert]};
}

int64_t Experts::row_blocks(int64_t expert) const { return divide_up(count(expert), kBlockRows); }

Experts::Block Experts::row_block(int64_t expert, int64_t index) const {
    const int64_t blocks = row_blocks(expert), rows = count(expert);
    return {first_[expert] + rows * index / blocks, first_[expert] + rows * (index + 1) / blocks};
}

// ---- products ----

// Some columns of what one expert's gate and up give for all of its rows.
void Experts::compute_inner(const Step& step, uint32_t task, const Worker& worker) const {
    const auto after = std::upper_bound(first_task_.begin(), first_task_.end(), int64_t{task});
    const int64_t expert = after - first_task_.begin() - 1, part = task - first_task_[expert];
    const int64_t parts = first_task_[expert + 1] - first_task_[expert];
    const int64_t inner = weights_.inner(), blocks = divide_up(inner, kBlockColumns);
    const int64_t last = std::min(inner, blocks * (part + 1) / parts * kBlockColumns);
    for (int64_t index = 0; index < row_blocks(expert); ++index)
        for (int64_t begin = blocks * part / parts * kBlockColumns; begin < last; begin += kPartColumns)
            inner_part(step, expert, row_block(expert, index), begin, std::min(begin + kPartColumns, last), worker);
}

void Experts::inner_part(const Step& step, int64_t expert, Block block, int64_t begin, int64_t end,
                         const Worker& worker) const {
    float *const gate = worker.scratch, *const up = gate + kPartFloats, *const row = up + kPartFloats;
    const bool alone = rows(step) == 1;
    QuantRows integers;
    const float* floats = nullptr;
    if (takes_integers()) {
        integers = alone ? step.quantised(x.buffer) : gathered(step).from(block.begin);
    } else {
        floats = alone ? step.floats(x).row(0) : workspace<float>(step, gathered_) + block.begin * weights_.hidden();
    }
    multiply(weights_.gate[expert], integers, floats, block.rows(), gate, begin, end);
    multiply(weights_.up[expert], integers, floats, block.rows(), up, begin, end);
    const int64_t columns = end - begin;
    for (int64_t r = 0; r < block.rows(); ++r) {
        const int64_t place = block.begin + r;
        const bool keep = !gives_integers();
        float* const to = keep ? workspace<float>(step, inner_) + place * weights_.inner() + begin : row;
        weights_.activation.apply(gate + r * kPartColumns, up + r * kPartColumns, to, columns);
        if (keep) continue;
        quantize(to, begin, columns, inner_integers(step, expert), place);
        if (energies_.empty()) continue;
        double* const energy = energies_.data() + expert * weights_.inner() + begin;
        for (int64_t i = 0; i < columns; ++i) energy[i] += double{to[i]} * double{to[i]};
    }
}

int64_t Experts::down_tasks(const Step& step) const {
    const int64_t blocks = divide_up(weights_.hidden(), kBlockColumns);
    return step.num_threads == 1 ? 1 : std::min(blocks, kTasksPerThread * step.num_threads);
}

// Some columns of the sum over all experts, of all rows: work that divides evenly however rows have chosen.
void Experts::compute_down(const Step& step, uint32_t task, const Worker& worker) const {
    const int64_t hidden = weights_.hidden(), blocks = divide_up(hidden, kBlockColumns), tasks = down_tasks(step);
    const int64_t last = std::min(hidden, blocks * (task + 1) / tasks * kBlockColumns);
    float* const product = worker.scratch;
    const FloatView sums = step.floats(out);
    for (int64_t begin = blocks * task / tasks * kBlockColumns; begin < last; begin += kPartColumns) {
        const int64_t end = std::min(begin + kPartColumns, last), columns = end - begin;
        for (int64_t row = 0; row < rows(step); ++row) start_sum(step, row, begin, columns);
        for (int64_t expert = 0; expert < weights_.count(); ++expert) {
            for (int64_t index = 0; index < row_blocks(expert); ++index) {
                const Block block = row_block(expert, index);
                const QuantRows integers =
                    gives_integers() ? inner_integers(step, expert).from(block.begin) : QuantRows{};
                const float* const floats =
                    gives_integers() ? nullptr : workspace<float>(step, inner_) + block.begin * weights_.inner();
                multiply(weights_.down[expert], integers, floats, block.rows(), product, begin, end);
                for (int64_t r = 0; r < block.rows(); ++r) {
                    const Place& place = places(step)[block.begin + r];
                    float *const part = product + r * kPartColumns, *const sum = sums.row(place.row) + begin;
                    ops().scale(part, place.share, part, columns);
                    ops().add(sum, part, sum, columns);
                }
            }
        }
    }
}

void Experts::start_sum(const Step& step, int64_t row, int64_t begin, int64_t count) const {
    float* const sum = step.floats(out).row(row) + begin;
    if (!shared) {
        std::fill(sum, sum + count, 0.0f);
        return;
    }
    const float score = step.floats(scores).row(row)[weights_.count()];
    ops().scale(step.floats(shared).row(row) + begin, 1.0f / (1.0f + std::exp(-score)), sum, count);
}

// ---- outliers ----

void Experts::learn_outliers() {
    std::fill(outliers_.begin(), outliers_.end(), Outliers{});
    if (gives_integers()) energies_.assign(static_cast<size_t>(weights_.count() * weights_.inner()), 0.0);
}

void Experts::use_outliers() {
    const int64_t inner = weights_.inner();
    for (int64_t e = 0; e < weights_.count() && !energies_.empty(); ++e)
        outliers_[e] = largest_columns(energies_.data() + e * inner, inner);
    energies_ = {};
}

}  // namespace pellucid
