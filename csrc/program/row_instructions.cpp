// The instructions that treat every row alike.

#include <algorithm>
#include <cstring>

#include "program/instruction.h"

namespace pellucid {

namespace {

constexpr int64_t kElementsPerTask = 4096;  // about a microsecond: less is not worth waking anybody for
constexpr int64_t kTasksPerThread = 4;

void copy_row(const float* from, float* to, int64_t n) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace

uint32_t RowInstruction::num_tasks(const Step& step, uint32_t) const {
    const int64_t n = rows(step);
    const int64_t useful = (n * columns() + kElementsPerTask - 1) / kElementsPerTask;
    return static_cast<uint32_t>(std::min({n, useful, kTasksPerThread * step.num_threads}));
}

void RowInstruction::run(const Step& step, uint32_t, uint32_t task, const Worker& worker) const {
    const int64_t n = rows(step), tasks = num_tasks(step, 0);
    for (int64_t row = n * task / tasks; row < n * (task + 1) / tasks; ++row) run_row(step, row, worker.scratch);
}

void Embedding::run_row(const Step& step, int64_t row, float*) const {
    const int64_t* ids = index == Index::Tokens ? step.inputs.token_ids : step.inputs.positions;
    float* to = step.floats(out).row(row);
    dequantize_row(table, ids[row], to);
    if (scale != 1.0f) ops().scale(to, scale, to, out.count);
}

// ---- norms ----

void Norm::visit_reads(const Visitor& visit) {
    visit(update);
    if (adds()) visit(residual);
}

void Norm::visit_writes(const Visitor& visit) {
    visit(out);
    if (total) visit(total);
    if (quantised_) visit(quantised_);
}

bool Norm::quantise(const Columns& columns, int buffer) {
    if (columns != out) return false;
    quantised_ = {buffer, 0, out.count};
    return true;
}

void Norm::normalise(const float* x, float* to) const {
    const int64_t size = weight.columns;
    for (int64_t head = 0; head < out.count; head += size) {
        if (bias) {
            ops().layer_norm(x + head, weight.data, bias.data, eps, to + head, size);
        } else {
            ops().rms_norm(x + head, weight.data, eps, to + head, size);
        }
    }
}

void Norm::run_row(const Step& step, int64_t row, float* scratch) const {
    const float* x = step.floats(update).row(row);
    if (total) {
        float* sum = step.row_or(total, row, scratch + out.count);
        if (adds()) {
            ops().add(step.floats(residual).row(row), x, sum, out.count);
        } else {
            copy_row(x, sum, out.count);
        }
        x = sum;
    }
    float* to = step.row_or(out, row, scratch);
    normalise(x, to);
    quantise_row(step, quantised_, row, to);
}

// ---- activations ----

const char* Activation::name() const {
    static constexpr const char* kNames[] = {"silu_mul", "gelu_mul", "gelu_tanh_mul", "gelu", "gelu_tanh", "softcap"};
    return kNames[static_cast<int>(kind)];
}

void Activation::apply(const float* x, const float* up, float* out, int64_t n) const {
    switch (kind) {
        case ActivationKind::SiluMul: return ops().silu_mul(x, up, out, n);
        case ActivationKind::GeluMul: return ops().gelu_mul(x, up, out, n);
        case ActivationKind::GeluTanhMul: return ops().gelu_tanh_mul(x, up, out, n);
        case ActivationKind::Gelu: return ops().gelu(x, out, n);
        case ActivationKind::GeluTanh: return ops().gelu_tanh(x, out, n);
        case ActivationKind::Softcap: return ops().softcap(x, cap, out, n);
    }
}

void Activate::visit_writes(const Visitor& visit) {
    visit(out);
    if (quantised_) visit(quantised_);
}

bool Activate::quantise(const Columns& columns, int buffer) {
    if (columns != out) return false;
    quantised_ = {buffer, 0, out.count};
    return true;
}

void Activate::run_row(const Step& step, int64_t row, float* scratch) const {
    const float* from = step.floats(x).row(row);
    float* to = step.row_or(out, row, scratch);
    activation.apply(from, from + out.count, to, out.count);
    quantise_row(step, quantised_, row, to);
}

// ---- copies ----

void Quantise::run_row(const Step& step, int64_t row, float*) const {
    quantise_row(step, out, row, step.floats(x).row(row));
}

void Gather::run_row(const Step& step, int64_t row, float*) const {
    const int64_t from = step.inputs.sampled[row], n = x.count;
    if ((*step.buffers)[x.buffer].kind != BufferKind::Quantised) {
        copy_row(step.floats(x).row(from), step.floats(out).row(row), n);
        return;
    }
    std::memcpy(step.quantised(out.buffer).from(row).data, step.quantised(x.buffer).from(from).data,
                static_cast<size_t>(QuantRows::row_bytes(n)));
}

// ---- keys and values ----

void WriteKV::visit_reads(const Visitor& visit) {
    if (cos) visit(q);
    visit(k);
    visit(v);
}

void WriteKV::visit_writes(const Visitor& visit) {
    if (cos) visit(out);
}

void WriteKV::run_row(const Step& step, int64_t row, float* scratch) const {
    const int64_t size = pool.head_dim, slot = step.inputs.slots[row];
    const auto prepare = [&](const float* head, const FloatTensor& weight, float eps, float* to) {
        if (weight) {
            ops().rms_norm(head, weight.data, eps, to, size);
            head = to;
        }
        const int64_t at = step.inputs.positions[row] * cos.columns;
        ops().rotate(head, cos.data + at, sin.data + at, cos.columns, to, size);
    };
    const float* keys = step.floats(k).row(row);
    const float* values = step.floats(v).row(row);
    if (cos) {
        const float* queries = step.floats(q).row(row);
        float* rotated = step.row_or(out, row, nullptr);
        for (int64_t i = 0; rotated && i < q.count; i += size) prepare(queries + i, q_weight, q_eps, rotated + i);
    }
    for (int64_t i = 0; i < k.count; i += size) {
        if (cos) prepare(keys + i, k_weight, k_eps, scratch);
        store_key(cos ? scratch : keys + i, slot, i / size);
        store_value(values + i, slot, i / size);
    }
}

void WriteKV::round(const float* head, void* to, float* scale) const {
    const int64_t size = pool.head_dim;
    switch (pool.type) {
        case KVType::Float32: return copy_row(head, static_cast<float*>(to), size);
        case KVType::BFloat16: return ops().to_bfloat16(head, static_cast<uint16_t*>(to), size);
        case KVType::Float16: return ops().to_float16(head, static_cast<uint16_t*>(to), size);
        case KVType::Int8:
            float mixed[kMaxHeadDim];
            ops().hadamard(head, mixed, size);
            return ops().to_int8(mixed, static_cast<int8_t*>(to), scale, size);
    }
}

void WriteKV::store_key(const float* head, int64_t slot, int64_t group) const {
    uint32_t rounded[kMaxHeadDim];
    round(head, rounded, pool.k_scale ? pool.k_scale + pool.row(slot, group) : nullptr);
    const int64_t words = pool.head_dim * kv_bytes(pool.type) / 4, size = pool.block_size;
    auto* to = static_cast<uint32_t*>(pool.k) + (slot / size * pool.num_kv_heads + group) * words * size + slot % size;
    for (int64_t w = 0; w < words; ++w) to[w * size] = rounded[w];
}

void WriteKV::store_value(const float* head, int64_t slot, int64_t group) const {
    const int64_t row = pool.row(slot, group), bytes = pool.head_dim * kv_bytes(pool.type);
    round(head, static_cast<std::byte*>(pool.v) + row * bytes, pool.v_scale ? pool.v_scale + row : nullptr);
}

}  // namespace pellucid
