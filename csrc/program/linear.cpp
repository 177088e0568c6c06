// A product with a weight, cut into blocks of rows and columns.

#include <algorithm>

#include "program/blocks.h"
#include "program/instruction.h"
#include "strip_layout.h"

namespace pellucid {

void Linear::visit_writes(const Visitor& visit) {
    visit(y);
    if (activates) visit(out);
    if (quantised_) visit(quantised_);
}

// Without an activation the next op is seldom a product.
bool Linear::quantise(const Columns& columns, int buffer) {
    if (!activates || columns != out) return false;
    quantised_ = {buffer, 0, out.count};
    return true;
}

// A few tasks per thread even out their speeds; more would cost more than that. Where a block of columns is much work,
// smaller ones let the others help a thread that was interrupted.
Linear::Grid Linear::grid(const Step& step) const {
    const int64_t n = rows(step), threads = step.num_threads;
    if (n == 0) return {0, 0};
    const int64_t row_blocks = divide_up(n, kBlockRows), columns = divide_up(width(), kBlockColumns);
    const int64_t per_thread = threads == 1 ? 1 : columns >= 64 * threads ? 8 : 3;
    return {row_blocks, std::min(columns, divide_up(per_thread * threads, row_blocks))};
}

Linear::Block Linear::block(const Step& step, uint32_t task) const {
    const auto [row_blocks, column_blocks] = grid(step);
    const int64_t n = rows(step), columns = divide_up(width(), kBlockColumns);
    const int64_t column = task / row_blocks, row = task % row_blocks;  // so a thread keeps its columns in its cache
    return {n * row / row_blocks, n * (row + 1) / row_blocks, columns * column / column_blocks * kBlockColumns,
            std::min(width(), columns * (column + 1) / column_blocks * kBlockColumns)};
}

uint32_t Linear::num_tasks(const Step& step, uint32_t) const {
    const Grid blocks = grid(step);
    return static_cast<uint32_t>(blocks.row_blocks * blocks.column_blocks);
}

Upcoming Linear::upcoming(const Step& step) const {
    if (rows(step) == 0) return {};
    const int64_t strips = kBlockColumns / kStripColumns, bytes = strip_layout(weight.k, weight.format).bytes;
    const bool gated = width() != weight.n;
    return {.data = weight.data.get(),
            .units = static_cast<uint64_t>(width() / kBlockColumns),
            .bytes = static_cast<uint64_t>(strips * bytes),
            .apart = gated ? static_cast<uint64_t>(width() / kStripColumns * bytes) : 0};
}

int64_t Linear::scratch_floats() const { return activates || ends ? 3 * kPartFloats : 0; }

void Linear::run(const Step& step, uint32_t, uint32_t task, const Worker& worker) const {
    const Block here = block(step, task);
    if (activates || (ends && step.likeliest)) {
        in_parts(step, here, worker);
    } else {
        multiply(step, here, here.column_begin, here.column_end, worker);
    }
}

// Columns [begin, end) of the product, for the block's rows. They go where y is, or to scratch memory if nobody reads y.
// Returns the view of row 0 of the block, column `begin`.
FloatView Linear::multiply(const Step& step, const Block& rows, int64_t begin, int64_t end,
                           const Worker& worker) const {
    const bool to_scratch = step.is_unread(y.buffer) || (ends && !activates && step.likeliest);
    const FloatView all = to_scratch ? FloatView{worker.scratch, kPartColumns} : step.floats(y);
    float* const first = to_scratch ? worker.scratch : all.row(rows.row_begin) + begin;
    // The kernels count columns from 0: they are given the address that column 0 would have.
    float* const column_0 = first - begin;
    const float* const b = bias ? bias.data : nullptr;
    if (weight.format.quantised()) {
        const QuantRows input = step.quantised(x.buffer).from(rows.row_begin);
        Meanwhile* const meanwhile = next_attention ? next_attention->meanwhile(step, worker.thread) : nullptr;
        gemm(weight, input, rows.rows(), column_0, all.stride, b, begin, end, meanwhile);
    } else {
        const FloatView input = step.floats(x);
        gemm_float(weight, input.row(rows.row_begin), input.stride, rows.rows(), column_0, all.stride, b, begin, end);
    }
    return {first, all.stride};
}

// The product of a block a few columns at a time, and what follows it while these are in the cache.
void Linear::in_parts(const Step& step, const Block& block, const Worker& worker) const {
    for (int64_t begin = block.column_begin; begin < block.column_end; begin += kPartColumns) {
        const int64_t end = std::min(begin + kPartColumns, block.column_end), count = end - begin;
        const FloatView product = multiply(step, block, begin, end, worker);
        FloatView up = product;
        if (activates && activation.gated())
            up = multiply(step, block, width() + begin, width() + end, {worker.thread, worker.scratch + kPartFloats});
        for (int64_t r = 0; r < block.rows(); ++r) {
            const int64_t row = block.row_begin + r;
            const float* x = product.row(r);
            if (activates) {
                const bool to_scratch = step.is_unread(out.buffer) || (ends && step.likeliest);
                float* const to = to_scratch ? worker.scratch + 2 * kPartFloats : step.floats(out).row(row) + begin;
                activation.apply(x, up.row(r), to, count);
                x = to;
            }
            finish(step, row, begin, count, x, worker);
        }
    }
}

// Columns of a row, as they leave this instruction.
void Linear::finish(const Step& step, int64_t row, int64_t begin, int64_t count, const float* x,
                    const Worker& worker) const {
    if (quantised_) step.quantise(quantised_.buffer, row, x, begin, count);
    if (ends && step.likeliest) step.likeliest->at(row, worker.thread).look(x, (activates ? out : y).begin + begin, count);
}

}  // namespace pellucid
