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
    const Meeting& base;
    const uint16_t* q;   // [rows, head_dim], scaled
    const ValueRows& values;
    uint16_t* weights;   // [kRowBlock, kPartition]
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
void score_pairs(const PairMeeting& m, int64_t row, int64_t key, Ahead& ahead) {
    const int64_t head_dim = m.base.tile.head_dim, stride = m.base.keys->stride;
    const uint16_t* q = m.q + row * head_dim;
    const float* keys[kVectors];
    for (int v = 0; v < kVectors; ++v) keys[v] = m.base.keys->vectors[key / kLanes + v];
    Float sum[kRows][kVectors];
    for (auto& sums : sum)
        for (Float& s : sums) s = spread(0.0f);
    for (int64_t place = 0; place < head_dim / 2 * stride; place += stride, q += 2) {
        ahead.fetch();
        Int k[kVectors];
        for (int v = 0; v < kVectors; ++v) k[v] = load_bytes(keys[v] + place);
        for (int r = 0; r < kRows; ++r) {
            const Int pair = spread_pair(q + r * head_dim);
            for (int v = 0; v < kVectors; ++v) sum[r][v] = dot_pairs(sum[r][v], k[v], pair);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(m.base.scores + r * kPartition + key + v * kLanes, sum[r][v]);
}

template <int kRows, int kVectors = kBlockVectors>
void score_pairs_up_to(int64_t vectors, const PairMeeting& m, int64_t row, int64_t key, Ahead& ahead) {
    if constexpr (kVectors > 1)
        if (vectors < kVectors) return score_pairs_up_to<kRows, kVectors - 1>(vectors, m, row, key, ahead);
    score_pairs<kRows, kVectors>(m, row, key, ahead);
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

// As `soften`, but the weights become bf16.
void soften_to_pairs(const Meeting& m, Range block, Range seen, float* scores, uint16_t* weights, float* largest,
                     float* denominator) {
    const int64_t first = block.begin / kLanes * kLanes;
    *largest = mask_scores(m, block, seen, scores);
    const Float offset = spread(seen.empty() ? 0.0f : *largest);
    Float sums[2] = {spread(0.0f), spread(0.0f)};
    for (int64_t i = first; i < block.end; i += kLanes) {
        Float& sum = sums[i / kLanes % 2];
        sum = add(sum, store_bfloat16(weights + i, exp(sub(load(scores + i), offset))));
    }
    *denominator = sum_of_lanes(add(sums[0], sums[1]));
}

template <int kRows>
void attend_pair_rows(const PairMeeting& m, int64_t first, Ahead& ahead) {
    const Meeting& base = m.base;
    const Range block = visible(base.tile, base.partition, base.token(first), base.token(first + kRows - 1));
    if (block.empty()) {
        for (int r = 0; r < kRows; ++r) base.out.largest[first + r] = -__builtin_inff();
        return;
    }
    constexpr int64_t kStep = kBlockVectors * kLanes;
    for (int64_t key = block.begin / kStep * kStep; key < block.end; key += kStep)
        score_pairs_up_to<kRows>((block.end - key + kLanes - 1) / kLanes, m, first, key, ahead);
    for (int r = 0; r < kRows; ++r) {
        const int64_t row = first + r;
        const Range seen = visible(base.tile, base.partition, base.token(row), base.token(row));
        soften_to_pairs(base, block, seen, base.scores + r * kPartition, m.weights + r * kPartition,
                        base.out.largest + row, base.out.denominator + row);
    }
    const int64_t head_dim = base.tile.head_dim;
    float* const out = base.out.out + first * head_dim;
    int64_t d = 0;
    for (; d + 2 * kChunk <= head_dim; d += 2 * kChunk) mix_pairs<kRows, 2>(m, block, d, true, ahead, out);
    for (; d < head_dim; d += kChunk) mix_pairs<kRows, 1>(m, block, d, d + kChunk <= head_dim, ahead, out);
}

template <int kRows = kRowBlock>
void attend_pair_block(int64_t rows, const PairMeeting& m, int64_t first, Ahead& ahead) {
    if constexpr (kRows > 1)
        if (rows < kRows) return attend_pair_block<kRows - 1>(rows, m, first, ahead);
    attend_pair_rows<kRows>(m, first, ahead);
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
    const PairMeeting pairs{m, q, values, weights};
    const RowTiles blocks(tile.rows(), kRowBlock);
    for (int64_t i = 0, row = 0; i < blocks.count; row += blocks.size(i++))
        attend_pair_block(blocks.size(i), pairs, row, ahead);
}

}  // namespace
}  // namespace pellucid
