// A model's step, recorded once and replayed: a list of instructions over buffers in one arena.
//
// Recording. Every buffer is [T, columns]; an op writes columns of a buffer that nobody wrote before (values never
// change, so a tensor and its views are columns of one buffer). From Python:
//
//     program = Program()
//     b = program.add_buffer(columns)                  -> int
//     Columns(b, begin, count)                         operand: these columns of every row
//     program.embedding(out, table, scale=1.0, index="tokens" | "positions")          table: PackedWeight
//     program.linear(out, x, weight, bias=None)        weight: PackedWeight; bias: float32 [n]
//     program.rms_norm(out, x, weight, eps)            weight: float32 [size]; x may hold several heads of that size
//     program.add_rms_norm(out, total, update, residual, weight, eps)                 without a residual (None),
//     program.layer_norm(out, x, weight, bias, eps)                                   total = update
//     program.add_layer_norm(out, total, update, residual, weight, bias, eps)
//     program.rope_and_write_kv(out_q, q, k, v, cos, sin, pool)                       cos, sin: float32
//     program.write_kv(k, v, pool)                     pool: KVPool(k, v[, scales])   [positions, rotated / 2]
//     program.paged_attention(out, q, pool, scale, window=None, softcap=None)
//     program.silu_mul(out, gate_up)
//     program.gelu_mul(out, gate_up, approximate)
//     program.gelu(out, x, approximate)
//     program.softcap(out, x, cap)
//     program.lora(y, x, table)                        adds to y, the product of x, what adapters add. table: LoraTable
//     program.experts(out, x, scores, gate, up, down, top_k, normalise, activation, shared=None)
//                     gate, up, down: a PackedWeight for each expert; activation: "silu", "gelu" or "gelu_tanh"; scores has
//                     a column for each expert, and one more if there is `shared`, what a shared expert gave
//     program.finalize(output, max_rows)               output: Columns, all of one buffer
//
// Running, all arrays dense numpy or torch (numpy crosses over faster), dtypes as in AttentionInputs:
//
//     program.run(team, token_ids, positions, slot_mapping, block_tables, query_start, seq_lens, sampled, out)
//
// writes to out [len(sampled), columns of output] float32 what the step's rows `sampled` (int64) have there. What
// follows the last attention is computed for these rows only. `adapters` [T] int32, if given, has the number of each
// row's adapter in the tables, below 0 for none. Every number is checked; errors are ValueError, before
// anything runs.
//
//     program.find_likeliest(team, ..., sampled, chosen, failed)                        as above but for the last two
//
// does not store what the rows have there, but writes the index of the largest to chosen [len(sampled)] (int64), or 0, and
// to failed (bool) whether there is no finite largest. Only if program.can_find_likeliest: it ends with a product.
//
// To look inside: program.describe() has a line for each instruction; program.times() has the nanoseconds that each
// took in the last run after program.timed = True. program.poison() is for tests.
//
// What happens to the list on the way: the input of a product with a quantised weight is quantised, by the op that
// makes it if it can; an activation is applied by the product before it; norms of q and k are done by the rotation.
// What nobody reads is neither computed nor stored. Results do not depend on any of this.

#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "program/experts.h"
#include "program/instruction.h"
#include "program/lora.h"
#include "thread_team.h"

namespace pellucid {

// All methods throw std::invalid_argument, saying what is wrong, and leave the program as it was.
class Program {
public:
    int add_buffer(int64_t columns);

    void embedding(const Columns& out, const PackedWeight& table, float scale, Embedding::Index index);
    void linear(const Columns& out, const Columns& x, const PackedWeight& weight, const FloatTensor& bias);
    // An RMS norm if there is no bias. `total` and `residual` are optional (buffer < 0).
    void norm(const Columns& out, const Columns& total, const Columns& update, const Columns& residual,
              const FloatTensor& weight, const FloatTensor& bias, float eps);
    void rope_and_write_kv(const Columns& out, const Columns& q, const Columns& k, const Columns& v,
                           const FloatTensor& cos, const FloatTensor& sin, const KVPool& pool);
    void write_kv(const Columns& k, const Columns& v, const KVPool& pool);
    void paged_attention(const Columns& out, const Columns& q, const KVPool& pool, float scale,
                         std::optional<int64_t> window, std::optional<float> softcap);
    void activate(const Columns& out, const Columns& x, Activation activation);
    void lora(const Columns& y, const Columns& x, std::shared_ptr<const LoraTable> table);
    // `shared` is optional.
    void experts(const Columns& out, const Columns& x, const Columns& scores, const Columns& shared,
                 ExpertWeights weights);

    void finalize(const Columns& output, int64_t max_rows);
    void run(ThreadTeam& team, const StepInputs& inputs, float* out);
    // Runs the step, and tells of each sampled row the id of its largest output and whether it has none that is finite.
    void find_likeliest(ThreadTeam& team, const StepInputs& inputs, int64_t* token_ids, bool* failed);
    bool can_find_likeliest() const { return can_find_likeliest_; }
    // Runs the step, and lets the columns that were largest in it be outliers from now on. Which ones does not depend on
    // the machine's threads.
    void learn_outliers(const StepInputs& inputs, float* out);

    int64_t output_columns() const { return buffers_.at(output_.buffer).columns; }
    int64_t arena_bytes() const { return arena_bytes_; }
    bool finalized() const { return arena_ != nullptr; }
    std::vector<std::string> describe() const;  // one line per instruction
    std::vector<int64_t> times() const;         // nanoseconds per instruction, of the last run that was timed
    void set_timed(bool timed) { timed_ = timed; }
    bool timed() const { return timed_; }
    // Fills all memory between ops with NaN, for tests: what is read without having been written shows.
    void poison();

private:
    struct Execution;
    struct Wanted {  // of a run
        float* out = nullptr;
        LikeliestOfThreads* likeliest = nullptr;
        Energies* energies = nullptr;
    };
    struct Free {
        void operator()(std::byte* p) const;
    };
    using Memory = std::unique_ptr<std::byte[], Free>;  // on whole cache lines
    using List = std::vector<std::unique_ptr<Instruction>>;

    // recording (record.cpp)
    void check_read(const Columns& columns, const char* name) const;
    void check_write(const Columns& columns, const char* name) const;
    void check_pool(const KVPool& pool);
    Instruction* writer_of(const Columns& columns) const;
    Columns quantised(const Columns& x);
    template <class T>
    T* find_writer(const Columns& columns) const;
    void append(std::unique_ptr<Instruction> instruction);

    // finalizing (finalize.cpp)
    void drop_unread(int output);
    void gather_sampled_rows(int output);
    void lay_out(int64_t max_rows);
    void find_ends();

    // running (program.cpp)
    void check(const StepInputs& inputs) const;
    void check_sequences(const StepInputs& inputs) const;
    void make_room(uint32_t num_threads);
    void execute(ThreadTeam& team, const StepInputs& inputs, const Wanted& wanted);
    static Memory allocate(int64_t bytes);

    List list_;
    std::vector<Buffer> buffers_;
    std::vector<Columns> written_;
    std::vector<std::pair<Columns, int>> quantised_;  // and the buffer that holds it in quantised form
    std::vector<AttentionPlan> plans_;
    Columns output_;

    // what the inputs of a run have to respect
    int64_t vocab_size_ = INT64_MAX;
    int64_t num_positions_ = INT64_MAX;
    int64_t num_blocks_ = INT64_MAX;
    int64_t block_size_ = 0;  // 0: there is no pool

    struct Stage {
        const Instruction* instruction;
        uint32_t index = 0;
        const Linear* next_product = nullptr;  // the first one behind it
    };
    std::vector<Stage> stages_;
    int64_t max_rows_ = 0;
    int64_t arena_bytes_ = 0;
    int64_t scratch_floats_ = 0;  // per thread
    Memory arena_;
    Memory scratch_;
    uint32_t scratch_threads_ = 0;
    std::vector<Meanwhile> meanwhile_;  // of each thread
    bool has_lora_ = false;
    AdaptedRows adapted_[2];  // see Step
    Memory partials_;
    int64_t partials_size_ = 0;  // floats
    bool can_find_likeliest_ = false;
    bool timed_ = false;
    std::vector<int64_t> opened_;  // when each stage began, and when the last one ended
    std::mutex one_run_;           // the arena belongs to one run
};

}  // namespace pellucid
