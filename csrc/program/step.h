// One run of a program: what the caller gives, and what instructions need to know about it.

#pragma once

#include <cstdint>
#include <vector>

#include "op_table.h"
#include "program/likeliest.h"
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
    const int32_t* adapters = nullptr;      // [T] number of each row's adapter, below 0 for none; null: no row has one
};

// Rows that have the same adapter: some of those that AdaptedRows lists.
struct AdapterGroup {
    int64_t begin = 0, end = 0;  // of `rows`
    int32_t adapter = 0;
    int64_t size() const { return end - begin; }
};

// The rows that have an adapter, one adapter after the other, of all the step's rows or of those that are sampled.
struct AdaptedRows {
    static constexpr int64_t kMaxGroup = 32;  // so that a long prompt is work for several threads
    std::vector<int64_t> rows;
    std::vector<AdapterGroup> groups;

    void list(const StepInputs& inputs, bool sampled);
};

// Consecutive query tokens of one sequence, and the partitions of its keys that they see.
struct QueryTile {
    int32_t sequence = 0;
    int64_t first_row = 0;  // of the step
    int64_t num_tokens = 0;
    int64_t first_position = 0;
    int64_t first_partition = 0;
    int64_t last_partition = 0;
    int64_t partials = 0;  // where its partial softmaxes start, if it is cut

    int64_t num_partitions() const { return last_partition - first_partition + 1; }
};

// Some partitions of a tile: a task for each key/value head.
struct AttentionPiece {
    int32_t tile;
    int64_t first_partition;
    int64_t last_partition;
};

struct AttentionShape {
    int64_t window = INT64_MAX;  // positions that a token sees, itself included
    int64_t heads_per_group = 1;
    int64_t num_groups = 1;  // key/value heads
    int64_t head_dim = 0;
    int64_t block_size = 0;

    bool operator==(const AttentionShape&) const = default;
};

// How the layers of one shape cut up the step. No result depends on it.
struct AttentionPlan {
    AttentionShape shape;
    std::vector<QueryTile> tiles;
    std::vector<AttentionPiece> pieces;
    int64_t groups_per_task = 1;     // 1 or all: a task does them one after the other for its piece
    int64_t pieces_per_task = 1;     // consecutive ones
    std::vector<int32_t> cut_tiles;  // whose partial softmaxes are merged in a second stage
    int64_t partial_floats = 0;
    // The blocks of sequences with a single tile, in the order in which the shares of the threads come to them, for those
    // who fetch them before; only in steps of many rows. Thread t's are those from first_block[t] to first_block[t + 1].
    std::vector<int32_t> blocks;
    std::vector<int64_t> first_block;

    int64_t num_tasks() const;  // but for merging
    void cut(const StepInputs& inputs, uint32_t num_threads);

private:
    void add_tiles(const StepInputs& inputs, int32_t sequence);
    void deal(uint32_t num_threads);
    void list_blocks(const StepInputs& inputs, uint32_t num_threads);
};

// From so many rows on products compute for longer than they read, and memory has time for something else.
constexpr int64_t kManyRows = 12;

// What a thread has to itself.
struct Worker {
    uint32_t thread;
    float* scratch;
};

// Room for the softmaxes of `rows` rows over one partition each, in whole cache lines.
int64_t softmax_floats(int64_t rows, int64_t head_dim);
PartialSoftmax softmax_at(float* place, int64_t rows);

// How large the columns of the quantised buffers are: the sums of their squares over all rows.
struct Energies {
    std::vector<std::vector<double>> of_buffer;

    void add(int buffer, const float* x, int64_t begin, int64_t count) {
        for (int64_t i = 0; i < count; ++i) of_buffer[buffer][begin + i] += double{x[i]} * double{x[i]};
    }
};

struct Step {
    StepInputs inputs;
    uint32_t num_threads = 1;
    const std::vector<Buffer>* buffers = nullptr;
    std::byte* arena = nullptr;
    float* output = nullptr;               // null where only the likeliest tokens are wanted
    LikeliestOfThreads* likeliest = nullptr;  // of the output, instead of it
    const std::vector<AttentionPlan>* plans = nullptr;
    float* partials = nullptr;     // of the attention layer that runs
    Meanwhile* meanwhile = nullptr;  // of each thread
    Energies* energies = nullptr;  // only while outliers are chosen, by one thread
    const AdaptedRows* adapted = nullptr;  // of all rows, and of those that are sampled

    bool is_unread(int buffer) const { return (*buffers)[buffer].unread; }
    FloatView floats(const Columns& columns) const {
        const Buffer& buffer = (*buffers)[columns.buffer];
        float* data = buffer.kind == BufferKind::Output ? output : reinterpret_cast<float*>(arena + buffer.place);
        return {data + columns.begin, buffer.columns};
    }
    QuantRows quantised(int index) const {
        const Buffer& buffer = (*buffers)[index];
        return {arena + buffer.place, buffer.columns, &buffer.outliers};
    }
    // x becomes columns [begin, begin + count) of row r of a quantised buffer.
    void quantise(int index, int64_t r, const float* x, int64_t begin, int64_t count) const {
        quantize(x, begin, count, quantised(index), r);
        if (energies) energies->add(index, x, begin, count);
    }
    // Row r of `columns`, or `scratch` if nobody reads them.
    float* row_or(const Columns& columns, int64_t r, float* scratch) const {
        return is_unread(columns.buffer) ? scratch : floats(columns).row(r);
    }
};

}  // namespace pellucid
