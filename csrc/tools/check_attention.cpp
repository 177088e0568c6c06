// Paged attention over odd shapes against softmax in double. What no token of a step sees is NaN.

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu_features.h"
#include "program.h"
#include "tools/check.h"

namespace pellucid::check {

namespace {

struct Shape {
    int64_t heads, groups, head_dim, block_size, window;
    float softcap;
};

// One sequence's keys or values: as they are stored, scattered over a pool, and in double.
struct Stored {
    std::vector<std::byte> pool;
    std::vector<float> scales;
    std::vector<double> exact;  // [length, groups, head_dim]

    Stored(KVType type, const Shape& shape, int64_t length, const std::vector<int32_t>& blocks, bool are_keys) {
        const int64_t slots = static_cast<int64_t>(blocks.size()) * shape.block_size, n = shape.head_dim;
        const int64_t bytes = n * kv_bytes(type);
        pool.resize(static_cast<size_t>(slots * shape.groups * bytes), std::byte{0xff});
        scales.resize(static_cast<size_t>(type == KVType::Int8 ? slots * shape.groups : 0), NAN);
        for (int64_t p = 0; p < length; ++p)
            for (int64_t g = 0; g < shape.groups; ++g) {
                const int64_t slot = int64_t{blocks[p / shape.block_size]} * shape.block_size + p % shape.block_size;
                std::vector<std::byte> row(static_cast<size_t>(bytes));
                const int64_t size = shape.block_size, block = slot / size * shape.groups + g;
                const int64_t head = block * size + slot % size;
                put(type, head, row.data(), random_floats(n));
                for (int64_t w = 0; w < bytes / 4; ++w) {
                    const int64_t key_word = (block * (bytes / 4) + w) * size + slot % size;
                    std::byte* to = pool.data() + (are_keys ? 4 * key_word : head * bytes + 4 * w);
                    std::copy_n(row.data() + 4 * w, 4, to);
                }
            }
    }

    // Whole numbers of 1/64 fit all but int8.
    void put(KVType type, int64_t head, std::byte* to, std::vector<float> x) {
        const auto n = static_cast<int64_t>(x.size());
        for (float& v : x) v = std::round(v * 8) / 8;
        if (type == KVType::Float32) std::copy(x.begin(), x.end(), reinterpret_cast<float*>(to));
        if (type == KVType::BFloat16) ops().to_bfloat16(x.data(), reinterpret_cast<uint16_t*>(to), n);
        if (type == KVType::Float16) ops().to_float16(x.data(), reinterpret_cast<uint16_t*>(to), n);
        if (type == KVType::Int8) {
            ops().hadamard(x.data(), x.data(), n);
            ops().to_int8(x.data(), reinterpret_cast<int8_t*>(to), &scales[head], n);
            for (int64_t i = 0; i < n; ++i) x[i] = scales[head] * static_cast<float>(static_cast<int8_t>(to[i]));
            ops().hadamard(x.data(), x.data(), n);
        }
        exact.insert(exact.end(), x.begin(), x.end());
    }
};

std::vector<double> softmax_attention(const Shape& s, const std::vector<float>& q, const Stored& keys,
                                      const Stored& values, int64_t length, int64_t rows) {
    std::vector<double> out;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t h = 0; h < s.heads; ++h) {
            const int64_t position = length - rows + r, group = h / (s.heads / s.groups);
            std::vector<double> sum(static_cast<size_t>(s.head_dim));
            double total = 0;
            for (int64_t p = std::max<int64_t>(0, s.window > position ? 0 : position - s.window + 1); p <= position; ++p) {
                const double* k = keys.exact.data() + (p * s.groups + group) * s.head_dim;
                const double* v = values.exact.data() + (p * s.groups + group) * s.head_dim;
                double score = 0;
                for (int64_t d = 0; d < s.head_dim; ++d) score += 0.25 * q[(r * s.heads + h) * s.head_dim + d] * k[d];
                if (s.softcap > 0) score = std::tanh(score / s.softcap) * s.softcap;
                total += std::exp(score);
                for (int64_t d = 0; d < s.head_dim; ++d) sum[d] += std::exp(score) * v[d];
            }
            for (const double x : sum) out.push_back(x / total);
        }
    return out;
}

void check_case(KVType type, const Shape& s, int64_t length, int64_t rows) {
    const int64_t num_blocks = (length + s.block_size - 1) / s.block_size + 2, width = s.heads * s.head_dim;
    std::vector<int32_t> blocks(static_cast<size_t>(num_blocks));
    for (int64_t b = 0; b < num_blocks; ++b) blocks[b] = static_cast<int32_t>(num_blocks - 1 - b);
    Stored keys(type, s, length, blocks, true), values(type, s, length, blocks, false);
    const std::vector<float> q = random_floats(rows * width);
    const KVPool pool{.k = keys.pool.data(), .v = values.pool.data(), .k_scale = keys.scales.data(),
                      .v_scale = values.scales.data(), .type = type, .num_blocks = num_blocks,
                      .block_size = s.block_size, .num_kv_heads = s.groups, .head_dim = s.head_dim, .owner = nullptr};
    Program program;
    const Columns in{program.add_buffer(width), 0, width}, out{program.add_buffer(width), 0, width};
    program.embedding(in, pack_float(rows, width, q.data()), 1.0f, Embedding::Index::Tokens);
    program.paged_attention(out, in, pool, 0.25f, s.window, s.softcap > 0 ? std::optional(s.softcap) : std::nullopt);
    program.finalize(out, rows);
    std::vector<int64_t> ids(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) ids[r] = r;
    const std::vector<int64_t> zeros(ids.size());
    const std::vector<int32_t> starts{0, static_cast<int32_t>(rows)}, lengths{static_cast<int32_t>(length)};
    std::vector<float> found(static_cast<size_t>(rows * width));
    ThreadTeam team(2);
    program.run(team,
                {.rows = rows, .num_sequences = 1, .table_width = num_blocks, .num_sampled = rows,
                 .token_ids = ids.data(), .positions = zeros.data(), .slots = zeros.data(),
                 .block_tables = blocks.data(), .query_start = starts.data(), .seq_lens = lengths.data(),
                 .sampled = ids.data()},
                found.data());
    // With dot products of such numbers, queries and weights are rounded, too; queries to 8 bits with those of int8.
    const Isa isa = active_isa();
    const bool pairs = type == KVType::BFloat16 && isa == Isa::Avx512Bf16;
    const bool int8 = type == KVType::Int8 && (isa == Isa::Avx512 || isa == Isa::Avx512Bf16);
    const double tolerance = pairs ? 1e-2 : int8 ? 5e-2 : 1e-5;
    expect_close("attention", found, softmax_attention(s, q, keys, values, length, rows), tolerance);
}

}  // namespace

void check_attention() {
    constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
    const Shape shapes[] = {{3, 1, 16, 1, kAll, 0},  {9, 3, 48, 7, kAll, 0},   {14, 2, 64, 16, kAll, 0},
                            {4, 2, 80, 5, 100, 0},   {2, 2, 256, 3, kAll, 2},  {100, 1, 16, 16, 1, 0}};
    for (const KVType type : {KVType::Float32, KVType::BFloat16, KVType::Float16, KVType::Int8})
        for (const Shape& shape : shapes)
            for (const auto& [length, rows] : std::initializer_list<std::pair<int64_t, int64_t>>{
                     {1, 1}, {17, 17}, {300, 1}, {257, 3}, {290, 40}})
                check_case(type, shape, length, rows);
}

}  // namespace pellucid::check
