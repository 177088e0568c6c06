// One run of a program: what the caller gives, and what instructions need to know about it.

#pragma once

#include <cstdint>
#include <vector>

#include "program/operands.h"

namespace pellucid {

// T rows over S sequences, as AttentionInputs of kernels/interface.py describes them. Everything is dense.
struct StepInputs {
    int64_t rows = 0;           // T
    int64_t num_sequences = 0;  // S
    int64_t table_width = 0;
    int64_t num_sampled = 0;
    const int64_t* token_ids = nullptr;     // [T]
    const int64_t* positions = nullptr;     // [T]
    const int64_t* slots = nullptr;         // [T] where each token's K and V go
    const int32_t* block_tables = nullptr;  // [S, table_width]
    const int32_t* query_start = nullptr;   // [S + 1]
    const int32_t* seq_lens = nullptr;      // [S]
    const int64_t* sampled = nullptr;       // [num_sampled] rows that the output is wanted of
};

// A tile of queries of one sequence, with some of the partitions of keys that it sees.
struct AttentionPiece {
    int32_t sequence;
    int32_t first_row;  // of the step
    int32_t num_tokens;
    int64_t first_position;
    int64_t first_partition, last_partition;
    int64_t partials;  // where this tile's partial softmaxes start (see AttentionPlan), kWhole if the piece is all of it
    static constexpr int64_t kWhole = -1;

    int64_t num_partitions() const { return last_partition - first_partition + 1; }
};

// How a kind of attention layer cuts up the step; the same for all layers of that kind.
struct AttentionPlan {
    int64_t window = 0;
    int64_t heads_per_group = 0;
    int64_t num_groups = 0;
    int64_t head_dim = 0;

    std::vector<AttentionPiece> pieces;  // the first stage has a task for each piece and group
    std::vector<AttentionPiece> split;   // whole tiles that were cut by partitions; the second stage merges them
    int64_t partial_floats = 0;

    bool fits(int64_t window, int64_t heads_per_group, int64_t num_groups, int64_t head_dim) const {
        return this->window == window && this->heads_per_group == heads_per_group && this->num_groups == num_groups &&
               this->head_dim == head_dim;
    }
    // Floats of one partial softmax of `rows` rows, in whole cache lines.
    int64_t partial_size(int64_t rows) const;
    void cut(const StepInputs& inputs, uint32_t num_threads);
};

class Instruction;

struct Step {
    StepInputs inputs;
    uint32_t num_threads = 1;
    const std::vector<Buffer>* buffers = nullptr;
    std::byte* arena = nullptr;
    int64_t max_rows = 0;  // that the arena is laid out for
    float* output = nullptr;
    const std::vector<AttentionPlan>* plans = nullptr;
    float* partials = nullptr;  // of the attention layer that runs

    bool is_unread(int buffer) const { return (*buffers)[buffer].unread; }
    FloatView floats(const Columns& columns) const {
        const Buffer& buffer = (*buffers)[columns.buffer];
        float* data = buffer.kind == BufferKind::Output ? output : reinterpret_cast<float*>(arena + buffer.place);
        return {data + columns.begin, buffer.columns};
    }
    QuantRows quantised(int index) const {
        const Buffer& buffer = (*buffers)[index];
        return quant_rows(arena + buffer.place, buffer.columns, max_rows);
    }
    // Row r of `columns`, or `scratch` if nobody reads them.
    float* row_or(const Columns& columns, int64_t r, float* scratch) const {
        return is_unread(columns.buffer) ? scratch : floats(columns).row(r);
    }
};

}  // namespace pellucid
