// Attention over a bf16 pool by dot products of bf16 pairs: queries and softmax weights are rounded to bf16 as well, and
// the denominator is the sum of the rounded weights. Included by attention.h where the CPU has such products.
//
//     scores[row][key]  = sum over pairs of d, ascending, of q[row][d..] . k[key][d..]            one chain per score
//     out[row][d]       = sum over pairs of keys, ascending, of p[row][key..] . v[key..][d]       one chain per component
//
// Pairs are of even and odd positions, wherever a sequence is cut. What nobody sees counts as zero.

#pragma once

namespace pellucid {
namespace {

constexpr int kChunk = 2 * kLanes;  // components of a value that are mixed together

struct PairMeeting {
    static constexpr int kMostRows = kRowBlock;
    const Meeting& base;
    const uint16_t* q;  // [rows, head_dim], scaled
    const ValueRows& values;
    uint16_t* weights;  // [kMostRows, kPartition]

    template <int kRows, int kVectors>
    void score(int64_t row, int64_t key, Ahead& ahead) const;
    void weigh(Range block, Range seen, int r, int64_t row) const {
        uint16_t* const to = weights + r * kPartition;
        soften(base, block, seen, base.scores + r * kPartition, row,
               [&](int64_t i, Float exact) { return store_bfloat16(to + i, exact); });
    }
    template <int kRows>
    void mix(Range block, Ahead& ahead, float* out) const;
};

void round_queries(const AttentionTile& tile, uint16_t* out) {
    const Float scale = spread(tile.scale);
    for (int64_t token = 0; token < tile.num_tokens; ++token) {
        const float* q = tile.q + token * tile.q_stride;
        for (int64_t i = 0; i < tile.heads * tile.head_dim; i += kLanes, out += kLanes)
            store_bfloat16(out, mul(load(q + i), scale));
    }
}

template <int kRows, int kVectors>
void PairMeeting::score(int64_t row, int64_t key, Ahead& ahead) const {
    const int64_t head_dim = base.tile.head_dim, stride = base.keys->stride;
    const uint16_t* from = q + row * head_dim;
    const float* keys[kVectors];
    for (int v = 0; v < kVectors; ++v) keys[v] = base.keys->vectors[key / kLanes + v];
    Float sum[kRows][kVectors];
    for (auto& sums : sum)
        for (Float& s : sums) s = spread(0.0f);
    for (int64_t place = 0; place < head_dim / 2 * stride; place += stride, from += 2) {
        ahead.fetch();
        Int k[kVectors];
        for (int v = 0; v < kVectors; ++v) k[v] = keep(load_bytes(keys[v] + place));
        for (int r = 0; r < kRows; ++r) {
            const Int pair = spread_pair(from + r * head_dim);
            for (int v = 0; v < kVectors; ++v) sum[r][v] = dot_pairs(sum[r][v], k[v], pair);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(base.scores + r * kPartition + key + v * kLanes, sum[r][v]);
}

// kRows rows of weights times components [d, d + kChunks * kChunk) of all values in `range`, or half of a chunk.
template <int kRows, int kChunks>
void mix_pairs(const PairMeeting& m, Range range, int64_t d, bool whole, Ahead& ahead, float* out) {
    constexpr int kVectors = 2 * kChunks;
    Float sum[kRows][kVectors];
    for (auto& sums : sum)
        for (Float& s : sums) s = spread(0.0f);
    for (int64_t key = range.begin / 2 * 2; key < range.end; key += 2) {
        const std::byte* even = m.values.row[key] + 2 * d;
        const std::byte* odd = m.values.row[key + 1] + 2 * d;
        Int value[kVectors];
        for (int c = 0; c < kChunks; ++c) {
            const Int a = load_bfloat16s(even + c * 2 * kChunk, whole), b = load_bfloat16s(odd + c * 2 * kChunk, whole);
            value[2 * c] = pair_low(a, b);
            value[2 * c + 1] = pair_high(a, b);
        }
        ahead.fetch();
        for (int r = 0; r < kRows; ++r) {
            const Int weights = spread_pair(m.weights + r * kPartition + key);
            for (int v = 0; v < kVectors; ++v) sum[r][v] = dot_pairs(sum[r][v], value[v], weights);
        }
    }
    const int64_t head_dim = m.base.tile.head_dim;
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kChunks; ++c) {
            float* const to = out + r * head_dim + d + c * kChunk;
            store(to, in_order_low(sum[r][2 * c], sum[r][2 * c + 1]));
            if (whole) store(to + kLanes, in_order_high(sum[r][2 * c], sum[r][2 * c + 1]));
        }
}

template <int kRows>
void PairMeeting::mix(Range block, Ahead& ahead, float* out) const {
    const int64_t head_dim = base.tile.head_dim;
    int64_t d = 0;
    for (; d + 2 * kChunk <= head_dim; d += 2 * kChunk) mix_pairs<kRows, 2>(*this, block, d, true, ahead, out);
    for (; d < head_dim; d += kChunk) mix_pairs<kRows, 1>(*this, block, d, d + kChunk <= head_dim, ahead, out);
}

void attend_pairs(Meeting& m, Ahead& ahead, uint16_t* q, float* room) {
    const AttentionTile& tile = m.tile;
    const Range range = all_visible(tile, m.partition);
    ValueRows values;
    find_values(tile, m.partition, range, values);
    values.surround(range, 2);
    KeyVectors keys;
    find_keys(tile, m.partition, range, room, keys);
    m.keys = &keys;
    uint16_t weights[kRowBlock * kPartition];
    round_queries(tile, q);
    attend_all_rows(PairMeeting{m, q, values, weights}, ahead);
}

}  // namespace
}  // namespace pellucid
