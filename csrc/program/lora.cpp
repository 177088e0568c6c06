#include "program/lora.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "program/blocks.h"

namespace pellucid {

namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kDownColumns = 32;
constexpr int64_t kUpColumns = 512;  // times the rows of a run, what a thread's caches hold

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

}  // namespace

LoraTable::LoraTable(int64_t k, std::vector<int64_t> sizes, int64_t max_rank)
    : k_(k), max_rank_(max_rank), sizes_(std::move(sizes)) {
    require(k >= 1 && k <= kMaxColumns && !sizes_.empty() && sizes_.size() <= 64, "the product has no such shape");
    for (const int64_t size : sizes_) {
        require(size >= 1 && size <= kMaxColumns, "a projection has 1 to 2^24 columns");
        columns_ += size;
    }
    require(max_rank >= 1 && max_rank <= 4096, "max_rank is not between 1 and 4096");
}

void LoraTable::set(int32_t adapter, PackedWeight a, const std::vector<PackedWeight>& b) {
    require(adapter >= 0, "an adapter's number is below 0");
    require(b.size() == sizes_.size(), "there is not one B for each projection");
    require(!a.format.quantised() && a.k == k_, "A does not have the product's input for columns");
    LoraUpdate update{.a = std::move(a), .parts = {}};
    int64_t column = 0, rank = 0;
    for (size_t i = 0; i < b.size(); column += sizes_[i++]) {
        if (!b[i].data) continue;
        require(!b[i].format.quantised() && b[i].n == sizes_[i], "B does not have the projection's outputs for rows");
        require(b[i].k <= max_rank_, "a rank is above max_rank");
        update.parts.push_back({.column = column, .first_rank = rank, .b = b[i]});
        rank += b[i].k;
    }
    require(rank >= 1 && rank == update.a.n, "A does not have a row for each rank");
    updates_[adapter] = std::move(update);
}

void AdaptedRows::list(const StepInputs& inputs, bool sampled) {
    rows.clear();
    groups.clear();
    if (!inputs.adapters) return;
    const auto adapter_of = [&](int64_t row) { return inputs.adapters[sampled ? inputs.sampled[row] : row]; };
    for (int64_t row = 0; row < (sampled ? inputs.num_sampled : inputs.rows); ++row)
        if (adapter_of(row) >= 0) rows.push_back(row);
    std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) { return adapter_of(a) < adapter_of(b); });
    for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i) {
        const int32_t adapter = adapter_of(rows[i]);
        if (groups.empty() || groups.back().adapter != adapter || groups.back().size() == kMaxGroup)
            groups.push_back({.begin = i, .end = i, .adapter = adapter});
        groups.back().end = i + 1;
    }
}

// ---- what both share: a task is a few blocks, each of a group's rows and some columns ----

int64_t LoraInstruction::num_blocks(const Step& step) const {
    return static_cast<int64_t>(adapted(step).groups.size()) * divide_up(out.count, block_columns());
}

uint32_t LoraInstruction::num_tasks(const Step& step, uint32_t) const {
    return static_cast<uint32_t>(std::min(num_blocks(step), kTasksPerThread * step.num_threads));
}

void LoraInstruction::run(const Step& step, uint32_t, uint32_t task, const Worker& worker) const {
    const std::vector<AdapterGroup>& groups = adapted(step).groups;
    const int64_t blocks = num_blocks(step), tasks = num_tasks(step, 0), size = static_cast<int64_t>(groups.size());
    for (int64_t block = blocks * task / tasks; block < blocks * (task + 1) / tasks; ++block) {
        const AdapterGroup& group = groups[block % size];
        const LoraUpdate* const update = table->find(group.adapter);
        if (update) run_block(step, *update, group, block / size * block_columns(), worker.scratch);
    }
}

// ---- down ----

int64_t LoraDown::block_columns() const { return kDownColumns; }

void LoraDown::run_block(const Step& step, const LoraUpdate& update, const AdapterGroup& group, int64_t column,
                         float* scratch) const {
    if (column >= update.a.n) return;
    const FloatView from = gather(step, group, scratch), to = step.floats(out);
    gemm_float(update.a, from.data, from.stride, group.size(), to.row(group.begin), to.stride, nullptr, column,
               std::min(update.a.n, column + kDownColumns));
}

// The group's rows of x, where they are if they follow each other.
FloatView LoraDown::gather(const Step& step, const AdapterGroup& group, float* scratch) const {
    const FloatView all = step.floats(x);
    const int64_t* const rows = adapted(step).rows.data() + group.begin;
    if (rows[group.size() - 1] - rows[0] == group.size() - 1) return {all.row(rows[0]), all.stride};
    for (int64_t i = 0; i < group.size(); ++i)
        std::memcpy(scratch + i * x.count, all.row(rows[i]), static_cast<size_t>(x.count) * sizeof(float));
    return {scratch, x.count};
}

// ---- up ----

void LoraUp::visit_reads(const Visitor& visit) {
    visit(out);
    visit(low);
}

int64_t LoraUp::block_columns() const { return kUpColumns; }

// A part may begin anywhere in a block, and products begin on strips of its own.
int64_t LoraUp::scratch_floats() const { return AdaptedRows::kMaxGroup * (kUpColumns + 2 * kStripColumns); }

void LoraUp::run_block(const Step& step, const LoraUpdate& update, const AdapterGroup& group, int64_t column,
                       float* scratch) const {
    const int64_t end = std::min(out.count, column + kUpColumns);
    for (const LoraUpdate::Part& part : update.parts) {
        const int64_t first = std::max(column, part.column), last = std::min(end, part.column + part.b.n);
        if (first < last) add_part(step, part, group, first - part.column, last - part.column, scratch);
    }
}

// To columns [begin, end) of the part.
void LoraUp::add_part(const Step& step, const LoraUpdate::Part& part, const AdapterGroup& group, int64_t begin,
                      int64_t end, float* scratch) const {
    const int64_t first = begin / kStripColumns * kStripColumns;
    const int64_t last = std::min(part.b.n, divide_up(end, kStripColumns) * kStripColumns);
    const int64_t stride = kUpColumns + 2 * kStripColumns;
    const FloatView from = step.floats(low), to = step.floats(out);
    // The kernels count columns from 0: they are given the address that column 0 would have.
    gemm_float(part.b, from.row(group.begin) + part.first_rank, from.stride, group.size(), scratch - first, stride,
               nullptr, first, last);
    for (int64_t i = 0; i < group.size(); ++i) {
        float* const here = to.row(adapted(step).rows[group.begin + i]) + part.column + begin;
        ops().add(here, scratch + i * stride + (begin - first), here, end - begin);
    }
}

}  // namespace pellucid
