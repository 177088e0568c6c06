#include "program/lora.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace pellucid {

namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kDownColumns = 32;
constexpr int64_t kUpColumns = 512;  // times the rows of a run, what a thread's caches hold

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

std::vector<AdapterRun> adapter_runs(const StepInputs& inputs, bool sampled) {
    std::vector<AdapterRun> runs;
    const int64_t rows = sampled ? inputs.num_sampled : inputs.rows;
    for (int64_t r = 0; r < rows; ++r) {
        const int32_t adapter = inputs.adapters ? inputs.adapters[sampled ? inputs.sampled[r] : r] : -1;
        const bool goes_on = !runs.empty() && runs.back().adapter == adapter && r - runs.back().begin < kMaxRunRows;
        if (!goes_on) runs.push_back({.begin = r, .end = r, .adapter = adapter});
        runs.back().end = r + 1;
    }
    return runs;
}

// ---- what both share: a task is a few blocks, each of a run's rows and some columns ----

int64_t LoraInstruction::num_blocks(const Step& step) const {
    return static_cast<int64_t>(step.adapter_runs(sampled).size()) * divide_up(out.count, block_columns());
}

uint32_t LoraInstruction::num_tasks(const Step& step, uint32_t) const {
    return static_cast<uint32_t>(std::min(num_blocks(step), kTasksPerThread * step.num_threads));
}

void LoraInstruction::run(const Step& step, uint32_t, uint32_t task, const Worker& worker) const {
    const std::vector<AdapterRun>& runs = step.adapter_runs(sampled);
    const int64_t blocks = num_blocks(step), tasks = num_tasks(step, 0), size = static_cast<int64_t>(runs.size());
    for (int64_t block = blocks * task / tasks; block < blocks * (task + 1) / tasks; ++block) {
        const AdapterRun& rows = runs[block % size];  // so a thread keeps its columns in its cache
        run_block(step, table->find(rows.adapter), rows, block / size * block_columns(), worker.scratch);
    }
}

// ---- down: low = x A^T ----

int64_t LoraDown::block_columns() const { return kDownColumns; }

void LoraDown::run_block(const Step& step, const LoraUpdate* update, const AdapterRun& rows, int64_t column,
                         float*) const {
    if (!update || column >= update->a.n) return;
    const FloatView from = step.floats(x), to = step.floats(out);
    gemm_float(update->a, from.row(rows.begin), from.stride, rows.end - rows.begin, to.row(rows.begin), to.stride,
               nullptr, column, std::min(update->a.n, column + kDownColumns));
}

// ---- up: out = y + low B^T ----

void LoraUp::visit_reads(const Visitor& visit) {
    visit(y);
    visit(low);
}

int64_t LoraUp::block_columns() const { return kUpColumns; }

// A part may begin anywhere in a block, and products begin on strips of its own.
int64_t LoraUp::scratch_floats() const { return kMaxRunRows * (kUpColumns + 2 * kStripColumns); }

void LoraUp::run_block(const Step& step, const LoraUpdate* update, const AdapterRun& rows, int64_t column,
                       float* scratch) const {
    const int64_t end = std::min(out.count, column + kUpColumns);
    for (int64_t r = rows.begin; r < rows.end; ++r)
        std::memcpy(step.floats(out).row(r) + column, step.floats(y).row(r) + column,
                    static_cast<size_t>(end - column) * sizeof(float));
    if (!update) return;
    for (const LoraUpdate::Part& part : update->parts) {
        const int64_t first = std::max(column, part.column), last = std::min(end, part.column + part.b.n);
        if (first < last) add_part(step, part, rows, first - part.column, last - part.column, scratch);
    }
}

// Columns [begin, end) of the part, to what is in `out` already.
void LoraUp::add_part(const Step& step, const LoraUpdate::Part& part, const AdapterRun& rows, int64_t begin,
                      int64_t end, float* scratch) const {
    const int64_t first = begin / kStripColumns * kStripColumns;
    const int64_t last = std::min(part.b.n, divide_up(end, kStripColumns) * kStripColumns);
    const int64_t stride = kUpColumns + 2 * kStripColumns;
    const FloatView from = step.floats(low), to = step.floats(out);
    // The kernels count columns from 0: they are given the address that column 0 would have.
    gemm_float(part.b, from.row(rows.begin) + part.first_rank, from.stride, rows.end - rows.begin, scratch - first,
               stride, nullptr, first, last);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        float* const here = to.row(r) + part.column + begin;
        ops().add(here, scratch + (r - rows.begin) * stride + (begin - first), here, end - begin);
    }
}

}  // namespace pellucid
