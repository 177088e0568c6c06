// Recording: every op is checked, and joined with its neighbours where that saves a pass over the data.

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "program.h"

namespace pellucid {

namespace {

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

std::string text(const Columns& c) {
    return "columns " + std::to_string(c.begin) + " to " + std::to_string(c.begin + c.count) + " of buffer " +
           std::to_string(c.buffer);
}

void require_count(const Columns& columns, int64_t count, const char* name) {
    require(columns.count == count, std::string(name) + " has " + std::to_string(columns.count) +
                                        " columns, expected " + std::to_string(count));
}

}  // namespace

// ---- what all ops need ----

int Program::add_buffer(int64_t columns) {
    require(!finalized(), "the program is finalized");
    require(columns >= 1 && columns <= kMaxColumns, "a buffer has 1 to 2^24 columns, not " + std::to_string(columns));
    buffers_.push_back({.columns = columns});
    return static_cast<int>(buffers_.size()) - 1;
}

// Written columns never overlap, so they cover a range if enough of them lie in it.
void Program::check_read(const Columns& columns, const char* name) const {
    int64_t covered = 0;
    for (const Columns& written : written_) covered += written.common(columns);
    require(columns.count >= 1 && covered == columns.count,
            std::string(name) + ", " + text(columns) + ", is not written yet");
}

void Program::check_write(const Columns& columns, const char* name) const {
    require(!finalized(), "the program is finalized");
    const bool exists = columns.buffer >= 0 && columns.buffer < static_cast<int>(buffers_.size());
    require(exists && buffers_[columns.buffer].kind == BufferKind::Float, std::string(name) + " is no buffer");
    const int64_t width = buffers_[columns.buffer].columns;
    require(
        columns.begin >= 0 && columns.count >= 1 && columns.begin <= width && columns.count <= width - columns.begin,
        std::string(name) + ", " + text(columns) + ", does not lie in it");
    const auto taken = [&](const Columns& written) { return written.common(columns) > 0; };
    require(std::none_of(written_.begin(), written_.end(), taken),
            std::string(name) + ", " + text(columns) + ", was written before");
}

void Program::append(std::unique_ptr<Instruction> instruction) {
    instruction->visit_writes([&](Columns& columns) { written_.push_back(columns); });
    list_.push_back(std::move(instruction));
}

Instruction* Program::writer_of(const Columns& columns) const {
    for (auto it = list_.rbegin(); it != list_.rend(); ++it) {
        bool found = false;
        (*it)->visit_writes([&](Columns& written) { found |= written == columns; });
        if (found) return it->get();
    }
    return nullptr;
}

// The quantised form of x, made by the op that writes x if it can, by one of its own otherwise.
Columns Program::quantised(const Columns& x) {
    for (const auto& [columns, buffer] : quantised_)
        if (columns == x) return {buffer, 0, x.count};
    const int buffer = static_cast<int>(buffers_.size());
    buffers_.push_back({.kind = BufferKind::Quantised, .columns = x.count});
    quantised_.emplace_back(x, buffer);
    const Columns whole{buffer, 0, x.count};
    Instruction* writer = writer_of(x);
    if (writer && writer->quantise(x, buffer)) {
        written_.push_back(whole);
    } else {
        auto op = std::make_unique<Quantise>();
        op->out = whole;
        op->x = x;
        append(std::move(op));
    }
    return whole;
}

template <class T>
T* Program::find_writer(const Columns& columns) const {
    return dynamic_cast<T*>(writer_of(columns));
}

// ---- ops on rows ----

void Program::embedding(const Columns& out, const PackedWeight& table, float scale, Embedding::Index index) {
    check_write(out, "out");
    require_count(out, table.k, "out");
    auto op = std::make_unique<Embedding>();
    op->out = out;
    op->table = table;
    op->scale = scale;
    op->index = index;
    int64_t& limit = index == Embedding::Index::Tokens ? vocab_size_ : num_positions_;
    limit = std::min(limit, table.n);
    append(std::move(op));
}

void Program::linear(const Columns& out, const Columns& x, const PackedWeight& weight, const FloatTensor& bias) {
    check_read(x, "x");
    check_write(out, "out");
    require_count(x, weight.k, "x");
    require_count(out, weight.n, "out");
    require(!bias || (bias.rows == 1 && bias.columns == weight.n), "bias does not have one number per column of out");
    auto op = std::make_unique<Linear>();
    op->y = out;
    op->x = weight.format.quantised() ? quantised(x) : x;
    op->weight = weight;
    op->bias = bias;
    append(std::move(op));
}

void Program::norm(const Columns& out, const Columns& total, const Columns& update, const Columns& residual,
                   const FloatTensor& weight, const FloatTensor& bias, float eps) {
    check_read(update, "update");
    check_write(out, "out");
    require(out.common(total) == 0, "out and total overlap");
    require_count(out, update.count, "out");
    if (total) {
        check_write(total, "total");
        require_count(total, update.count, "total");
    }
    if (residual) {
        require(static_cast<bool>(total), "a residual needs a total");
        check_read(residual, "residual");
        require_count(residual, update.count, "residual");
    }
    require(weight.rows == 1 && update.count % weight.columns == 0, "the row is not a whole number of weights long");
    require(!bias || (bias.rows == 1 && bias.columns == weight.columns), "bias and weight differ in length");
    require(!total || weight.columns == update.count, "a norm that adds spans the whole row");
    auto op = std::make_unique<Norm>();
    op->out = out;
    op->total = total;
    op->update = update;
    op->residual = residual;
    op->weight = weight;
    op->bias = bias;
    op->eps = eps;
    append(std::move(op));
}

// A product applies the activation itself, to what it has just computed. A gated one it computes in pairs of columns,
// which have to start on a strip of the weight.
void Program::activate(const Columns& out, const Columns& x, Activation activation) {
    check_read(x, "x");
    check_write(out, "out");
    require_count(x, activation.gated() ? 2 * out.count : out.count, "x");
    require(activation.kind != ActivationKind::Softcap || activation.cap > 0.0f, "cap is not positive");
    auto* product = find_writer<Linear>(x);
    if (product && product->y == x && !product->activates && (!activation.gated() || out.count % kStripColumns == 0)) {
        product->activates = true;
        product->activation = activation;
        product->out = out;
        written_.push_back(out);
        return;
    }
    auto op = std::make_unique<Activate>();
    op->activation = activation;
    op->out = out;
    op->x = x;
    append(std::move(op));
}

// The only op that changes what is there: nobody has read y before, or its bits would depend on whether a row has an
// adapter elsewhere in the step.
void Program::lora(const Columns& y, const Columns& x, std::shared_ptr<const LoraTable> table) {
    check_read(y, "y");
    check_read(x, "x");
    require(!finalized(), "the program is finalized");
    require_count(x, table->k(), "x");
    require_count(y, table->columns(), "y");
    for (const auto& instruction : list_)
        instruction->visit_reads([&](Columns& read) { require(read.common(y) == 0, "y was read before"); });
    auto down = std::make_unique<LoraDown>();
    down->table = table;
    down->x = x;
    down->out = {add_buffer(table->most_ranks()), 0, table->most_ranks()};
    auto up = std::make_unique<LoraUp>();
    up->table = std::move(table);
    up->low = down->out;
    up->out = y;
    append(std::move(down));
    list_.push_back(std::move(up));  // y counts as written once
    has_lora_ = true;
}

void Program::experts(const Columns& out, const Columns& x, const Columns& scores, const Columns& shared,
                      ExpertWeights weights) {
    check_read(x, "x");
    check_read(scores, "scores");
    check_write(out, "out");
    weights.check();
    require_count(x, weights.hidden(), "x");
    require_count(out, weights.hidden(), "out");
    require_count(scores, weights.count() + (shared ? 1 : 0), "scores");
    if (shared) {
        check_read(shared, "shared");
        require_count(shared, weights.hidden(), "shared");
    }
    const Columns input = weights.gate[0].format.quantised() ? quantised(x) : x;
    const int first_workspace = static_cast<int>(buffers_.size());
    for (const int64_t columns : Experts::workspace_columns(weights)) add_buffer(columns);
    auto op = std::make_unique<Experts>(std::move(weights), first_workspace);
    op->out = out;
    op->x = input;
    op->scores = scores;
    op->shared = shared;
    append(std::move(op));
}

// ---- attention ----

void Program::check_pool(const KVPool& pool) {
    require(pool.num_blocks >= 1 && pool.block_size >= 1, "the pool is empty");
    require(pool.head_dim % 16 == 0 && pool.head_dim >= 16 && pool.head_dim <= kMaxHeadDim,
            "heads of " + std::to_string(pool.head_dim) + " are not supported: a multiple of 16, at most 256");
    require(block_size_ == 0 || block_size_ == pool.block_size, "pools differ in block size");
}

void Program::write_kv(const Columns& k, const Columns& v, const KVPool& pool) {
    rope_and_write_kv({}, {}, k, v, {}, {}, pool);
}

void Program::rope_and_write_kv(const Columns& out, const Columns& q, const Columns& k, const Columns& v,
                                const FloatTensor& cos, const FloatTensor& sin, const KVPool& pool) {
    require(!finalized(), "the program is finalized");
    check_pool(pool);
    check_read(k, "k");
    check_read(v, "v");
    require_count(k, pool.slot_columns(), "k");
    require_count(v, pool.slot_columns(), "v");
    auto op = std::make_unique<WriteKV>();
    if (cos) {
        check_read(q, "q");
        check_write(out, "out");
        require_count(out, q.count, "out");
        require(q.count % pool.head_dim == 0, "q is not a whole number of heads");
        require(sin.rows == cos.rows && sin.columns == cos.columns, "cos and sin differ in shape");
        require(2 * cos.columns <= pool.head_dim, "cos has more columns than half a head");
        num_positions_ = std::min(num_positions_, cos.rows);
    }
    op->out = out;
    op->q = q;
    op->k = k;
    op->v = v;
    op->cos = cos;
    op->sin = sin;
    op->pool = pool;
    // Norms of single heads are cheap enough to be done here. If nobody else reads them they go away.
    const auto take_norm = [&](Columns& heads, FloatTensor& weight, float& eps) {
        const auto* norm = find_writer<Norm>(heads);
        if (!cos || !norm || norm->total || norm->bias || norm->out != heads || norm->weight.columns != pool.head_dim)
            return;
        heads = norm->update;
        weight = norm->weight;
        eps = norm->eps;
    };
    take_norm(op->q, op->q_weight, op->q_eps);
    take_norm(op->k, op->k_weight, op->k_eps);
    num_blocks_ = std::min(num_blocks_, pool.num_blocks);
    block_size_ = pool.block_size;
    append(std::move(op));
}

void Program::paged_attention(const Columns& out, const Columns& q, const KVPool& pool, float scale,
                              std::optional<int64_t> window, std::optional<float> softcap) {
    check_pool(pool);
    check_read(q, "q");
    check_write(out, "out");
    require_count(out, q.count, "out");
    require(q.count % pool.slot_columns() == 0, "q does not have a whole number of heads per key/value head");
    require(!window || *window >= 1, "window is not positive");
    require(!softcap || *softcap > 0.0f, "softcap is not positive");
    auto op = std::make_unique<Attention>();
    op->out = out;
    op->q = q;
    op->pool = pool;
    op->scale = scale;
    op->softcap = softcap.value_or(0.0f);
    const AttentionShape shape{.window = window.value_or(INT64_MAX),
                               .heads_per_group = q.count / pool.slot_columns(),
                               .num_groups = pool.num_kv_heads,
                               .head_dim = pool.head_dim,
                               .block_size = pool.block_size};
    const auto found =
        std::find_if(plans_.begin(), plans_.end(), [&](const AttentionPlan& plan) { return plan.shape == shape; });
    op->plan = static_cast<int>(found - plans_.begin());
    if (found == plans_.end()) plans_.emplace_back().shape = shape;
    num_blocks_ = std::min(num_blocks_, pool.num_blocks);
    block_size_ = pool.block_size;
    append(std::move(op));
}

}  // namespace pellucid
