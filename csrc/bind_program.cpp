// ThreadTeam, Program and its operands. The API is described in program.h, which also checks what is recorded and run;
// here arrays are checked for their shape and kept alive.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "bindings.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pellucid {
namespace {

using Operand = std::optional<Columns>;
using Adapters = std::optional<Input<int32_t, 1>>;
using PoolTensor = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Scales = std::optional<nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>>;

int64_t size(const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

template <class Array>
FloatTensor tensor(const Array& array) {
    const bool is_vector = array.ndim() == 1;
    return {.data = array.data(),
            .rows = is_vector ? 1 : size(array, 0),
            .columns = size(array, is_vector ? 0 : 1),
            .owner = std::make_shared<Array>(array)};
}

FloatTensor vector(const Input<float, 1>& array, const char* name) {
    require(size(array, 0) > 0, std::string(name) + " is empty");
    return tensor(array);
}

KVType kv_type(nb::dlpack::dtype dtype) {
    using nb::dlpack::dtype_code;
    const auto is = [&](dtype_code code, uint8_t bits) {
        return dtype == nb::dlpack::dtype{static_cast<uint8_t>(code), bits, 1};
    };
    if (is(dtype_code::Bfloat, 16)) return KVType::BFloat16;
    if (is(dtype_code::Float, 16)) return KVType::Float16;
    if (is(dtype_code::Int, 8)) return KVType::Int8;
    require(is(dtype_code::Float, 32), "the pool is neither float32 nor bfloat16 nor float16 nor int8");
    return KVType::Float32;
}

// Of an int8 pool's keys or values: one for each slot and head. Null for other pools.
float* scales_of(const PoolTensor& pool, const Scales& scales, bool is_int8) {
    require(scales.has_value() == is_int8, "an int8 pool has scales, and no other has");
    if (!is_int8) return nullptr;
    for (size_t axis = 0; axis < 3; ++axis)
        require(scales->shape(axis) == pool.shape(axis), "scales are not [num_blocks, block_size, G]");
    return scales->data();
}

KVPool make_pool(PoolTensor k, PoolTensor v, Scales k_scale, Scales v_scale) {
    for (size_t axis = 0; axis < 4; ++axis) require(k.shape(axis) == v.shape(axis), "k and v differ in shape");
    require(k.dtype() == v.dtype(), "k and v differ in dtype");
    const KVType type = kv_type(k.dtype());
    require(reinterpret_cast<uintptr_t>(k.data()) % 4 == 0, "k does not start on a word");
    for (size_t axis = 0; axis < 4; ++axis) require(k.shape(axis) > 0, "the pool is empty");
    return {.k = k.data(),
            .v = v.data(),
            .k_scale = scales_of(k, k_scale, type == KVType::Int8),
            .v_scale = scales_of(v, v_scale, type == KVType::Int8),
            .type = type,
            .num_blocks = size(k, 0),
            .block_size = size(k, 1),
            .num_kv_heads = size(k, 2),
            .head_dim = size(k, 3),
            .owner = std::make_shared<std::tuple<PoolTensor, PoolTensor, Scales, Scales>>(k, v, k_scale, v_scale)};
}

Embedding::Index parse_index(const std::string& index) {
    require(index == "tokens" || index == "positions", "index is '" + index + "', expected tokens or positions");
    return index == "tokens" ? Embedding::Index::Tokens : Embedding::Index::Positions;
}

ActivationKind gated_kind(const std::string& activation) {
    if (activation == "silu") return ActivationKind::SiluMul;
    if (activation == "gelu") return ActivationKind::GeluMul;
    require(activation == "gelu_tanh", "activation is '" + activation + "', expected silu, gelu or gelu_tanh");
    return ActivationKind::GeluTanhMul;
}

// The arrays of a step, as Python gives them.
struct StepArrays {
    Input<int64_t, 1> token_ids, positions, slot_mapping;
    Input<int32_t, 2> block_tables;
    Input<int32_t, 1> query_start, seq_lens;
    Input<int64_t, 1> sampled;
    Adapters adapters = {};

    StepInputs checked(const Program& program) const {
        require(program.finalized(), "the program is not finalized");
        const int64_t rows = size(token_ids, 0), sequences = size(seq_lens, 0);
        require(size(positions, 0) == rows, "positions and token_ids differ in length");
        require(size(slot_mapping, 0) == rows, "slot_mapping and token_ids differ in length");
        require(size(block_tables, 0) == sequences, "block_tables and seq_lens differ in length");
        require(!adapters || size(*adapters, 0) == rows, "adapters and token_ids differ in length");
        require(size(query_start, 0) == sequences + 1, "query_start is not one longer than seq_lens");
        return {.rows = rows,
                .num_sequences = sequences,
                .table_width = size(block_tables, 1),
                .num_sampled = size(sampled, 0),
                .token_ids = token_ids.data(),
                .positions = positions.data(),
                .slots = slot_mapping.data(),
                .block_tables = block_tables.data(),
                .query_start = query_start.data(),
                .seq_lens = seq_lens.data(),
                .sampled = sampled.data(),
                .adapters = adapters ? adapters->data() : nullptr};
    }
};

float* checked_out(const Program& program, const StepInputs& inputs, const Output<float, 2>& out) {
    require(size(out, 0) == inputs.num_sampled && size(out, 1) == program.output_columns(),
            "out is not [sampled, " + std::to_string(program.output_columns()) + "]");
    require(out.size() == 0 || (out.stride(1) == 1 && (size(out, 0) == 1 || out.stride(0) == size(out, 1))),
            "out is not contiguous");
    return out.data();
}

template <class T>
T* checked_results(const StepInputs& inputs, const Output<T, 1>& out, const char* name) {
    require(size(out, 0) == inputs.num_sampled, std::string(name) + " and sampled differ in length");
    require(out.size() < 2 || out.stride(0) == 1, std::string(name) + " is not contiguous");
    return out.data();
}

void run(Program& program, ThreadTeam& team, Input<int64_t, 1> token_ids, Input<int64_t, 1> positions,
         Input<int64_t, 1> slot_mapping, Input<int32_t, 2> block_tables, Input<int32_t, 1> query_start,
         Input<int32_t, 1> seq_lens, Input<int64_t, 1> sampled, Output<float, 2> out, Adapters adapters) {
    const StepArrays arrays{token_ids, positions, slot_mapping, block_tables, query_start, seq_lens, sampled, adapters};
    const StepInputs inputs = arrays.checked(program);
    float* const to = checked_out(program, inputs, out);
    const nb::gil_scoped_release release;
    program.run(team, inputs, to);
}

void find_likeliest(Program& program, ThreadTeam& team, Input<int64_t, 1> token_ids, Input<int64_t, 1> positions,
                    Input<int64_t, 1> slot_mapping, Input<int32_t, 2> block_tables, Input<int32_t, 1> query_start,
                    Input<int32_t, 1> seq_lens, Input<int64_t, 1> sampled, Output<int64_t, 1> chosen,
                    Output<bool, 1> failed, Adapters adapters) {
    const StepArrays arrays{token_ids, positions, slot_mapping, block_tables, query_start, seq_lens, sampled, adapters};
    const StepInputs inputs = arrays.checked(program);
    int64_t* const ids = checked_results(inputs, chosen, "chosen");
    bool* const fails = checked_results(inputs, failed, "failed");
    const nb::gil_scoped_release release;
    program.find_likeliest(team, inputs, ids, fails);
}

void learn_outliers(Program& program, Input<int64_t, 1> token_ids, Input<int64_t, 1> positions,
                    Input<int64_t, 1> slot_mapping, Input<int32_t, 2> block_tables, Input<int32_t, 1> query_start,
                    Input<int32_t, 1> seq_lens, Input<int64_t, 1> sampled, Output<float, 2> out) {
    const StepArrays arrays{token_ids, positions, slot_mapping, block_tables, query_start, seq_lens, sampled};
    const StepInputs inputs = arrays.checked(program);
    float* const to = checked_out(program, inputs, out);
    const nb::gil_scoped_release release;
    program.learn_outliers(inputs, to);
}

void bind_operands(nb::module_& m) {
    nb::class_<ThreadTeam>(m, "ThreadTeam", "Threads that run programs; the calling thread is one of them.")
        .def(nb::init<uint32_t>(), "num_threads"_a)
        .def_prop_ro("num_threads", &ThreadTeam::size);
    nb::class_<Columns>(m, "Columns", "Columns [begin, begin + count) of every row of a program's buffer.")
        .def(
            "__init__",
            [](Columns* self, int buffer, int64_t begin, int64_t count) {
                require(buffer >= 0, "there is no buffer " + std::to_string(buffer));
                require(begin >= 0 && begin <= kMaxColumns && count >= 1 && count <= kMaxColumns,
                        "no buffer has columns " + std::to_string(begin) + " to + " + std::to_string(count));
                new (self) Columns{buffer, begin, count};
            },
            "buffer"_a, "begin"_a, "count"_a)
        .def_ro("buffer", &Columns::buffer)
        .def_ro("begin", &Columns::begin)
        .def_ro("count", &Columns::count);
    nb::class_<KVPool>(m, "KVPool",
                       "One layer's keys and values: [num_blocks, block_size, G, D], float32, bfloat16, float16, or int8 "
                       "with float32 scales [num_blocks, block_size, G]. What a head has in a block lies together: see "
                     "kernels.native.native_layout.")
        .def(
            "__init__",
            [](KVPool* self, PoolTensor k, PoolTensor v, Scales k_scale, Scales v_scale) {
                new (self) KVPool(make_pool(k, v, k_scale, v_scale));
            },
            "k"_a.noconvert(), "v"_a.noconvert(), "k_scale"_a.noconvert() = nb::none(),
            "v_scale"_a.noconvert() = nb::none());
}

void bind_row_ops(nb::class_<Program>& program) {
    program
        .def(
            "embedding",
            [](Program& p, Columns out, const PackedWeight& table, float scale, const std::string& index) {
                p.embedding(out, table, scale, parse_index(index));
            },
            "out"_a, "table"_a, "scale"_a = 1.0f, "index"_a = "tokens")
        .def(
            "linear",
            [](Program& p, Columns out, Columns x, const PackedWeight& weight, std::optional<Input<float, 1>> bias) {
                p.linear(out, x, weight, bias ? vector(*bias, "bias") : FloatTensor{});
            },
            "out"_a, "x"_a, "weight"_a, "bias"_a = nb::none())
        .def(
            "rms_norm",
            [](Program& p, Columns out, Columns x, Input<float, 1> weight, float eps) {
                p.norm(out, {}, x, {}, vector(weight, "weight"), {}, eps);
            },
            "out"_a, "x"_a, "weight"_a, "eps"_a)
        .def(
            "add_rms_norm",
            [](Program& p, Columns out, Columns total, Columns update, Operand residual, Input<float, 1> weight,
               float eps) {
                p.norm(out, total, update, residual.value_or(Columns{}), vector(weight, "weight"), {}, eps);
            },
            "out"_a, "total"_a, "update"_a, "residual"_a.none(), "weight"_a, "eps"_a)
        .def(
            "layer_norm",
            [](Program& p, Columns out, Columns x, Input<float, 1> weight, Input<float, 1> bias, float eps) {
                p.norm(out, {}, x, {}, vector(weight, "weight"), vector(bias, "bias"), eps);
            },
            "out"_a, "x"_a, "weight"_a, "bias"_a, "eps"_a)
        .def(
            "add_layer_norm",
            [](Program& p, Columns out, Columns total, Columns update, Operand residual, Input<float, 1> weight,
               Input<float, 1> bias, float eps) {
                p.norm(out, total, update, residual.value_or(Columns{}), vector(weight, "weight"), vector(bias, "bias"),
                       eps);
            },
            "out"_a, "total"_a, "update"_a, "residual"_a.none(), "weight"_a, "bias"_a, "eps"_a)
        .def(
            "silu_mul",
            [](Program& p, Columns out, Columns gate_up) {
                p.activate(out, gate_up, {.kind = ActivationKind::SiluMul});
            },
            "out"_a, "gate_up"_a)
        .def(
            "gelu_mul",
            [](Program& p, Columns out, Columns gate_up, bool approximate) {
                p.activate(out, gate_up, {.kind = approximate ? ActivationKind::GeluTanhMul : ActivationKind::GeluMul});
            },
            "out"_a, "gate_up"_a, "approximate"_a)
        .def(
            "gelu",
            [](Program& p, Columns out, Columns x, bool approximate) {
                p.activate(out, x, {.kind = approximate ? ActivationKind::GeluTanh : ActivationKind::Gelu});
            },
            "out"_a, "x"_a, "approximate"_a)
        .def(
            "softcap",
            [](Program& p, Columns out, Columns x, float cap) {
                p.activate(out, x, {.kind = ActivationKind::Softcap, .cap = cap});
            },
            "out"_a, "x"_a, "cap"_a)
        .def(
            "experts",
            [](Program& p, Columns out, Columns x, Columns scores, std::vector<PackedWeight> gate,
               std::vector<PackedWeight> up, std::vector<PackedWeight> down, int64_t top_k, bool normalise,
               const std::string& activation, Operand shared) {
                p.experts(out, x, scores, shared.value_or(Columns{}),
                          {.gate = std::move(gate), .up = std::move(up), .down = std::move(down),
                           .activation = {.kind = gated_kind(activation)}, .top_k = top_k, .normalise = normalise});
            },
            "out"_a, "x"_a, "scores"_a, "gate"_a, "up"_a, "down"_a, "top_k"_a, "normalise"_a, "activation"_a,
            "shared"_a.none() = nb::none());
}

void bind_lora(nb::module_& m, nb::class_<Program>& program) {
    nb::class_<LoraTable>(m, "LoraTable", "What adapters add to one product; see csrc/program/lora.h. Not while a program runs.")
        .def(nb::init<int64_t, std::vector<int64_t>, int64_t>(), "k"_a, "sizes"_a, "max_rank"_a)
        .def(
            "set",
            [](LoraTable& table, int32_t adapter, const PackedWeight& a, const std::vector<std::optional<PackedWeight>>& b) {
                std::vector<PackedWeight> parts;
                for (const auto& part : b) parts.push_back(part.value_or(PackedWeight{}));
                table.set(adapter, a, parts);
            },
            "adapter"_a, "a"_a, "b"_a, "A [ranks, k] of all parts, and the B [n, rank] of each part or None.")
        .def("remove", &LoraTable::remove, "adapter"_a);
    program.def(
        "lora",
        [](Program& p, Columns y, Columns x, std::shared_ptr<LoraTable> table) {
            require(table != nullptr, "there is no table");
            p.lora(y, x, std::move(table));
        },
        "y"_a, "x"_a, "table"_a);
}

void bind_attention_ops(nb::class_<Program>& program) {
    program
        .def(
            "rope_and_write_kv",
            [](Program& p, Columns out, Columns q, Columns k, Columns v, Input<float, 2> cos, Input<float, 2> sin,
               const KVPool& pool) {
                require(size(cos, 0) > 0 && size(cos, 1) > 0, "cos is empty");
                p.rope_and_write_kv(out, q, k, v, tensor(cos), tensor(sin), pool);
            },
            "out"_a, "q"_a, "k"_a, "v"_a, "cos"_a, "sin"_a, "pool"_a)
        .def("write_kv", &Program::write_kv, "k"_a, "v"_a, "pool"_a)
        .def("paged_attention", &Program::paged_attention, "out"_a, "q"_a, "pool"_a, "scale"_a, "window"_a = nb::none(),
             "softcap"_a = nb::none());
}

}  // namespace

void bind_program(nb::module_& m) {
    bind_operands(m);
    nb::class_<Program> program(m, "Program", "A model's step, recorded once and replayed; see csrc/program.h.");
    program.def(nb::init<>()).def("add_buffer", &Program::add_buffer, "columns"_a);
    bind_row_ops(program);
    bind_attention_ops(program);
    bind_lora(m, program);
    program.def("finalize", &Program::finalize, "output"_a, "max_rows"_a)
        .def("run", &run, "team"_a, "token_ids"_a, "positions"_a, "slot_mapping"_a, "block_tables"_a, "query_start"_a,
             "seq_lens"_a, "sampled"_a, "out"_a.noconvert(), "adapters"_a = nb::none())
        .def("find_likeliest", &find_likeliest, "team"_a, "token_ids"_a, "positions"_a, "slot_mapping"_a,
             "block_tables"_a, "query_start"_a, "seq_lens"_a, "sampled"_a, "chosen"_a.noconvert(),
             "failed"_a.noconvert(), "adapters"_a = nb::none(),
             "Run the step, and write the index of each sampled row's largest output instead of the outputs.")
        .def_prop_ro("can_find_likeliest", &Program::can_find_likeliest)
        .def("learn_outliers", &learn_outliers, "token_ids"_a, "positions"_a, "slot_mapping"_a, "block_tables"_a,
             "query_start"_a, "seq_lens"_a, "sampled"_a, "out"_a.noconvert(),
             "Run the step, and let the columns that were largest in it be outliers from now on.")
        .def("describe", &Program::describe, "One line per instruction; unread buffers stand in parentheses.")
        .def_prop_rw("timed", &Program::timed, &Program::set_timed, "Whether runs note what each instruction takes.")
        .def("times", &Program::times, "Nanoseconds of each instruction in the last timed run.")
        .def("poison", &Program::poison)
        .def_prop_ro("arena_bytes", &Program::arena_bytes);
}

}  // namespace pellucid
