// Attention over an int8 pool by dot products of int8. Queries are rounded as keys are, to 8 bits: both are transformed
// (hadamard.h), so that no component stands out. Softmax weights times the scales of their values span more than 8 bits
// hold; they are rounded to 16, as two numbers of 8 bits. Included by attention.h where the CPU has such products.
//
//     score   = q scale * k scale * dot(q, k)
//     out[d]  = p scale * (256 * dot(high of p, v[.., d]) + dot(low of p, v[.., d]))
//
// All dot products are exact, so there is no order to keep. GCC keeps sums in registers only if all loops over them are
// unrolled before it places variables, and if the loop around them is a function of its own: hence the pragmas.

#pragma once

#include "rope.h"

namespace pellucid {
namespace {

constexpr int kInt8Chunk = 64;
constexpr float kMostWeight = 65535.0f;

// Queries, [rows, head_dim], and what belongs to a row.
struct Int8Queries {
    struct Row {
        float scale;
        int32_t sum;
    };
    int8_t* numbers;
    Row* rows;

    // In room for as many floats as there are components: a head has at least 16.
    Int8Queries(float* room, int64_t num_rows, int64_t head_dim)
        : numbers(reinterpret_cast<int8_t*>(room)), rows(reinterpret_cast<Row*>(numbers + num_rows * head_dim)) {}
};

struct Int8Meeting {
    static constexpr int kMostRows = kRowBlock;
    const Meeting& base;
    const Int8Queries& q;
    const ValueRows& values;
    uint8_t* high;  // weights, [kMostRows, kPartition] each
    uint8_t* low;
    float* scale;  // of the weights, [kMostRows]

    template <int kRows, int kVectors>
    __attribute__((noinline)) void score(int64_t row, int64_t key, Ahead& ahead) const;
    void weigh(Range block, Range seen, int r, int64_t row) const;
    template <int kRows>
    void mix(Range block, Ahead& ahead, float* out) const;
};

void round_query(const float* query, float factor, int64_t n, const Int8Queries& out, int64_t row) {
    float q[kMaxHeadDim], scale;
    hadamard_head(query, q, n);
    int8_t* const to = out.numbers + row * n;
    to_int8_row(q, to, &scale, n);
    Int sum = spread(0);
    for (int64_t i = 0; i < n; i += kInt8Chunk) sum = dot8bit(sum, spread(0x01010101), load_bytes_up_to(to + i, n - i));
    out.rows[row] = {scale * factor, sum_of_lanes(sum)};
}

template <int kRows, int kVectors>
void Int8Meeting::score(int64_t row, int64_t key, Ahead& ahead) const {
    const int64_t head_dim = base.tile.head_dim, stride = base.keys->stride;
    const int8_t* from = q.numbers + row * head_dim;
    const float* keys[kVectors];
    for (int v = 0; v < kVectors; ++v) keys[v] = base.keys->vectors[key / kLanes + v];
    // Keys count as unsigned, 128 too large: the sums begin with what that adds.
    Int sum[kRows][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] = spread(-128 * q.rows[row + r].sum);
    for (int64_t place = 0; place < head_dim / 4 * stride; place += stride, from += 4) {
        ahead.fetch();
        Int k[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) k[v] = flip_signs(load_bytes(keys[v] + place));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
            const Int four = spread4(from + r * head_dim);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) add_dot(sum[r][v], k[v], four);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = key + v * kLanes;
            const Float scale = mul(load(base.key_scales + at), spread(q.rows[row + r].scale));
            store(base.scores + r * kPartition + at, mul(to_float(sum[r][v]), scale));
        }
}

void Int8Meeting::weigh(Range block, Range seen, int r, int64_t row) const {
    float* const scores = base.scores + r * kPartition;
    Float top = spread(0.0f);
    soften(base, block, seen, scores, row, [&](int64_t i, Float weights) {
        const Float scaled = mul(weights, load(base.value_scales + i));
        top = max(top, scaled);
        store(scores + i, scaled);
        return weights;
    });
    const int64_t first = block.begin / kLanes * kLanes, at = r * kPartition;
    const float most = max_of_lanes(top);
    const Float inverse = spread(most > 0.0f ? kMostWeight / most : 0.0f), limit = spread(kMostWeight);
    for (int64_t i = first; i < block.end; i += kLanes)
        store_unsigned_high_and_low(high + at + i, low + at + i,
                                    round_to_int(min(limit, mul(load(scores + i), inverse))));
    scale[r] = most / kMostWeight;
}

// kRows rows of weights, from `row` on, times components [d, d + count) of all values in `range`; count is 16 to 64.
template <int kRows>
__attribute__((noinline)) void mix_int8(const Int8Meeting& m, int row, Range range, int64_t d, int64_t count,
                                        Ahead& ahead, float* out) {
    Int sum_high[kRows][4], sum_low[kRows][4];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sum_high[r][v] = sum_low[r][v] = spread(0);
    for (int64_t key = range.begin / 4 * 4; key < range.end; key += 4) {
        Int rows[4], value[4];
        for (int i = 0; i < 4; ++i) rows[i] = load_bytes_up_to(m.values.row[key + i] + d, count);
        pair_four(rows, value);
        ahead.fetch();
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const auto four = [&](const uint8_t* p) {
                return spread4(reinterpret_cast<const int8_t*>(p + (row + r) * kPartition + key));
            };
            const Int high = four(m.high), low = four(m.low);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                add_dot(sum_high[r][v], high, value[v]);
                add_dot(sum_low[r][v], low, value[v]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
        Float sum[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
            sum[v] = fma(to_float(sum_high[r][v]), spread(256.0f), to_float(sum_low[r][v]));
        in_order(sum);
        const Float scale = spread(m.scale[row + r]);
        float* const to = out + (row + r) * m.base.tile.head_dim + d;
        for (int v = 0; v * kLanes < count; ++v) store(to + v * kLanes, mul(sum[v], scale));
    }
}

template <int kRows>
void Int8Meeting::mix(Range block, Ahead& ahead, float* out) const {
    const int64_t head_dim = base.tile.head_dim;
    constexpr int kAtOnce = kRows < 3 ? kRows : 3;  // high and low have sums of their own
    for (int64_t d = 0; d < head_dim; d += kInt8Chunk) {
        const int64_t count = smaller(kInt8Chunk, head_dim - d);
        mix_int8<kAtOnce>(*this, 0, block, d, count, ahead, out);
        if constexpr (kRows > kAtOnce) mix_int8<kRows - kAtOnce>(*this, kAtOnce, block, d, count, ahead, out);
    }
}

void attend_int8(Meeting& m, Ahead& ahead, float* q, float* room) {
    const AttentionTile& tile = m.tile;
    const Range range = all_visible(tile, m.partition);
    ValueRows values;
    find_values(tile, m.partition, range, values);
    values.surround(range, 4);
    float scales[2 * kPartition];
    take_scales(m, range, scales);
    KeyVectors keys;
    find_keys(tile, m.partition, range, room, keys);
    m.keys = &keys;
    const Int8Queries queries(q, tile.rows(), tile.head_dim);
    for (int64_t r = 0; r < tile.rows(); ++r)
        round_query(tile.q + r / tile.heads * tile.q_stride + r % tile.heads * tile.head_dim, tile.scale, tile.head_dim,
                    queries, r);
    constexpr int64_t kWeights = Int8Meeting::kMostRows * kPartition;
    uint8_t high[kWeights], low[kWeights];
    float weight_scales[Int8Meeting::kMostRows];
    attend_all_rows(Int8Meeting{m, queries, values, high, low, weight_scales}, ahead);
}

}  // namespace
}  // namespace pellucid
