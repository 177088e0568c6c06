// The kinds of instruction. Each says what it reads and writes, how it is cut into tasks, and does a task.

#pragma once

#include <functional>
#include <memory>

#include "op_table.h"
#include "program/operands.h"
#include "program/step.h"
#include "thread_team.h"

namespace pellucid {

class Instruction {
public:
    using Visitor = std::function<void(Columns&)>;

    virtual ~Instruction() = default;
    virtual const char* name() const = 0;
    virtual void visit_reads(const Visitor&) {}
    virtual void visit_writes(const Visitor&) {}
    // Whether it works on the step's rows as they came, instead of on each row of its operands alone.
    virtual bool needs_all_rows() const { return false; }
    virtual bool writes_kv() const { return false; }

    virtual uint32_t num_stages() const { return 1; }
    virtual uint32_t num_tasks(const Step& step, uint32_t stage) const = 0;
    virtual void run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const = 0;
    virtual int64_t scratch_floats() const { return 0; }

    // Asks to leave `out`, which it writes, in quantised form in `buffer` as well. False if it cannot.
    virtual bool quantise(const Columns& /*out*/, int /*buffer*/) { return false; }

    int64_t rows(const Step& step) const { return sampled ? step.inputs.num_sampled : step.inputs.rows; }

    bool sampled = false;  // works on the rows that are sampled only
};

// An instruction that treats every row alike, and one at a time.
class RowInstruction : public Instruction {
public:
    uint32_t num_tasks(const Step& step, uint32_t stage) const final;
    void run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const final;

protected:
    virtual int64_t columns() const = 0;  // about how many elements a row has to be worked on
    virtual void run_row(const Step& step, int64_t row, float* scratch) const = 0;
};

// Leaves a row in quantised form as well, if somebody asked for it.
inline void quantise_row(const Step& step, const Columns& out, int64_t row, const float* x) {
    if (out) step.quantise(out.buffer, row, x, 0, out.count);
}

// ---- one row at a time ----

class Embedding final : public RowInstruction {
public:
    enum class Index : uint8_t { Tokens, Positions };

    const char* name() const override { return "embedding"; }
    void visit_writes(const Visitor& visit) override { visit(out); }
    bool needs_all_rows() const override { return true; }
    int64_t columns() const override { return out.count; }
    void run_row(const Step& step, int64_t row, float* scratch) const override;

    Columns out;
    PackedWeight table;
    float scale = 1.0f;
    Index index = Index::Tokens;
};

// out = norm(residual + update), total = residual + update; without a residual the update is the total.
class Norm final : public RowInstruction {
public:
    const char* name() const override { return bias ? "layer_norm" : "rms_norm"; }
    void visit_reads(const Visitor& visit) override;
    void visit_writes(const Visitor& visit) override;
    int64_t columns() const override { return 2 * out.count; }
    void run_row(const Step& step, int64_t row, float* scratch) const override;
    int64_t scratch_floats() const override { return 2 * out.count; }
    bool quantise(const Columns& columns, int buffer) override;

    bool adds() const { return static_cast<bool>(residual); }
    void normalise(const float* x, float* to) const;  // every head of a row, or the whole of it

    Columns out, total, update, residual;  // total and residual are optional
    FloatTensor weight, bias;              // [size]; a row holds out.count / size heads. No bias: an RMS norm
    float eps = 0.0f;

private:
    Columns quantised_;
};

enum class ActivationKind : uint8_t { SiluMul, GeluMul, GeluTanhMul, Gelu, GeluTanh, Softcap };

struct Activation {
    ActivationKind kind = ActivationKind::Gelu;
    float cap = 0.0f;  // Softcap only

    bool gated() const { return kind <= ActivationKind::GeluTanhMul; }
    const char* name() const;
    // `up` is for gated kinds only.
    void apply(const float* x, const float* up, float* out, int64_t n) const;
};

class Activate final : public RowInstruction {
public:
    const char* name() const override { return activation.name(); }
    void visit_reads(const Visitor& visit) override { visit(x); }
    void visit_writes(const Visitor& visit) override;
    int64_t columns() const override { return 4 * out.count; }
    void run_row(const Step& step, int64_t row, float* scratch) const override;
    int64_t scratch_floats() const override { return out.count; }
    bool quantise(const Columns& columns, int buffer) override;

    Activation activation;
    Columns out, x;

private:
    Columns quantised_;
};

class Quantise final : public RowInstruction {
public:
    const char* name() const override { return "quantise"; }
    void visit_reads(const Visitor& visit) override { visit(x); }
    void visit_writes(const Visitor& visit) override { visit(out); }
    int64_t columns() const override { return x.count; }
    void run_row(const Step& step, int64_t row, float* scratch) const override;

    Columns out;  // all of a quantised buffer
    Columns x;
};

// Rows of a buffer, whatever it holds, that are sampled.
class Gather final : public RowInstruction {
public:
    const char* name() const override { return "gather"; }
    void visit_reads(const Visitor& visit) override { visit(x); }
    void visit_writes(const Visitor& visit) override { visit(out); }
    int64_t columns() const override { return x.count; }
    void run_row(const Step& step, int64_t row, float* scratch) const override;

    Columns out, x;
};

// Stores k and v in the pool. Before, rotates q and k if there are tables, and norms them first if there are weights.
class WriteKV final : public RowInstruction {
public:
    const char* name() const override { return cos ? "rope_and_write_kv" : "write_kv"; }
    void visit_reads(const Visitor& visit) override;
    void visit_writes(const Visitor& visit) override;
    bool needs_all_rows() const override { return true; }
    bool writes_kv() const override { return true; }
    int64_t columns() const override { return 2 * (q.count + 2 * k.count); }
    void run_row(const Step& step, int64_t row, float* scratch) const override;
    int64_t scratch_floats() const override { return pool.head_dim; }

    Columns out, q;  // with tables only
    Columns k, v;
    FloatTensor cos, sin;            // [max_position, rotated / 2]
    FloatTensor q_weight, k_weight;  // of RMS norms, [head_dim]
    float q_eps = 0.0f, k_eps = 0.0f;
    KVPool pool;

private:
    void round(const float* head, void* to, float* scale) const;
    void store_key(const float* head, int64_t slot, int64_t group) const;
    void store_value(const float* head, int64_t slot, int64_t group) const;
};

// ---- several rows at a time ----

class Attention;

// y = x * w^T + bias, with an activation on what comes out where there is one.
class Linear final : public Instruction {
public:
    const char* name() const override { return "linear"; }
    void visit_reads(const Visitor& visit) override { visit(x); }
    void visit_writes(const Visitor& visit) override;
    uint32_t num_tasks(const Step& step, uint32_t stage) const override;
    void run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const override;
    int64_t scratch_floats() const override;
    Upcoming upcoming(const Step& step) const;  // its weight, as threads share it
    bool quantise(const Columns& columns, int buffer) override;

    Columns y, x;  // x is all of a quantised buffer if the weight is quantised
    PackedWeight weight;
    FloatTensor bias;
    bool activates = false;
    Activation activation;
    Columns out;  // of the activation
    const Attention* next_attention = nullptr;  // in the program
    bool ends = false;  // what comes out is the program's output

private:
    // Rows and columns of one task. With a gate, columns of the activation's result.
    struct Block {
        int64_t row_begin, row_end, column_begin, column_end;
        int64_t rows() const { return row_end - row_begin; }
    };
    struct Grid {
        int64_t row_blocks, column_blocks;
    };
    int64_t width() const { return activates && activation.gated() ? weight.n / 2 : weight.n; }
    Grid grid(const Step& step) const;
    Block block(const Step& step, uint32_t task) const;
    FloatView multiply(const Step& step, const Block& rows, int64_t begin, int64_t end, const Worker& worker) const;
    void in_parts(const Step& step, const Block& block, const Worker& worker) const;
    void finish(const Step& step, int64_t row, int64_t begin, int64_t count, const float* x, const Worker& worker) const;

    Columns quantised_;
};

class Attention final : public Instruction {
public:
    const char* name() const override { return "paged_attention"; }
    void visit_reads(const Visitor& visit) override { visit(q); }
    void visit_writes(const Visitor& visit) override;
    bool needs_all_rows() const override { return true; }
    uint32_t num_stages() const override { return 2; }
    uint32_t num_tasks(const Step& step, uint32_t stage) const override;
    void run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const override;
    int64_t scratch_floats() const override;
    bool quantise(const Columns& columns, int buffer) override;
    // The thread's, on its way through the keys and values of its share; null if there are none to be fetched.
    Meanwhile* meanwhile(const Step& step, uint32_t thread) const;

    Columns out, q;
    KVPool pool;
    float scale = 1.0f;
    float softcap = 0.0f;
    int plan = 0;  // of the step's plans

private:
    struct Part {  // of a task: a piece for one key/value head
        const AttentionPiece* piece = nullptr;
        int64_t group = 0;
    };

    int64_t heads_per_group() const { return q.count / pool.slot_columns(); }
    AttentionTile queries(const Step& step, const QueryTile& tile, int64_t group) const;
    void attend(const Step& step, const Part& part, const Part& then, bool fetched, float* scratch) const;
    void merge(const Step& step, const QueryTile& tile, int64_t group, float* scratch) const;
    void store(const Step& step, const QueryTile& tile, int64_t group, PartialSoftmax total, float* scratch) const;
    PartialSoftmax partial(const Step& step, const QueryTile& tile, int64_t group, int64_t partition) const;

    Columns quantised_;
};

}  // namespace pellucid
