// Attention of one tile over one partition of 256 positions, and how partitions are put together (online softmax,
// Milakov and Gimelshein 2018). Included after a simd header.
//
//     scores[row][key]  = sum over d, ascending, of q[row][d] * k[key][d]     one chain per score
//     out[row][d]       = sum over keys, ascending, of p[row][key] * v[key][d]  one chain per component
//
// Both are computed in register blocks of up to kRowBlock rows, whatever shape fits. No chain depends on the shape.
// Keys that a row does not see have p = 0 exactly and change nothing, so it does not matter that a row beside it does.
// With an int8 pool a score is multiplied by its key's scale when it is complete, and p by the value's.

#pragma once

#include "../kernel_table.h"
#include "hadamard.h"
#include "kv_rows.h"

namespace pellucid {
namespace {

constexpr int kRowBlock = 6;
constexpr int kBlockVectors = kLanes == 16 ? 4 : 2;  // kRowBlock * kBlockVectors sums fit the registers
// Up to so many rows numbers are widened where they are used; of more rows, once for all of them.
constexpr int64_t kFewRows = 2 * kRowBlock;

// A tile that meets a partition.
struct Meeting {
    const AttentionTile& tile;
    int64_t partition;
    const float* q;             // [rows, head_dim], scaled
    const KeyVectors* keys;
    const float* key_scales;    // [kPartition], or null
    const float* value_scales;  // likewise
    float* scores;              // [kRowBlock, kPartition]
    PartialSoftmax out;

    int64_t token(int64_t row) const { return row / tile.heads; }
};

void pack_queries(const AttentionTile& tile, float* out) {
    const Float scale = spread(tile.scale);
    for (int64_t token = 0; token < tile.num_tokens; ++token) {
        const float* q = tile.q + token * tile.q_stride;
        for (int64_t i = 0; i < tile.heads * tile.head_dim; i += kLanes, out += kLanes)
            store(out, mul(load(q + i), scale));
    }
}

// Number `i` of the words at `place` of kVectors vectors of keys, times that component of kRows rows of queries.
template <KVType kKeys, int kRows, int kVectors>
inline void add_component(const float* const (&keys)[kVectors], int64_t place, int i, const float* q, int64_t head_dim,
                          Float (&sum)[kRows][kVectors]) {
    Float k[kVectors];
    for (int v = 0; v < kVectors; ++v) k[v] = Words<kKeys>::number(keys[v] + place, i);
    for (int r = 0; r < kRows; ++r) {
        const Float component = spread(q[r * head_dim + i]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(component, k[v], sum[r][v]);
    }
}

// kRows rows of queries times kVectors vectors of keys, whose panels hold numbers of kKeys.
template <int kRows, int kVectors, KVType kKeys>
void score_block(const Meeting& m, int64_t row, int64_t key, Ahead& ahead) {
    constexpr int kNumbers = Words<kKeys>::kNumbers;
    const int64_t head_dim = m.tile.head_dim, words = head_dim / kNumbers;
    const float* q = m.q + row * head_dim;
    const float* keys[kVectors];
    for (int v = 0; v < kVectors; ++v) keys[v] = m.keys->vectors[key / kLanes + v];
    const int64_t stride = m.keys->stride;
    Float sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = spread(0.0f);
    for (int64_t place = 0; place < words * stride; place += stride, q += kNumbers) {
        ahead.fetch();
        add_component<kKeys>(keys, place, 0, q, head_dim, sum);
        if constexpr (kNumbers > 1) add_component<kKeys>(keys, place, 1, q, head_dim, sum);
        if constexpr (kNumbers > 2) add_component<kKeys>(keys, place, 2, q, head_dim, sum);
        if constexpr (kNumbers > 2) add_component<kKeys>(keys, place, 3, q, head_dim, sum);
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = key + v * kLanes;
            const Float score = m.key_scales ? mul(sum[r][v], load(m.key_scales + at)) : sum[r][v];
            store(m.scores + r * kPartition + at, score);
        }
}

// kRows rows of weights times kVectors vectors of all values in `range`.
template <int kRows, int kVectors, class Rows>
void mix_block(const float* weights, const Rows& values, Range range, int64_t d, int64_t head_dim, Ahead& ahead,
               float* out) {
    Float sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = spread(0.0f);
    for (int64_t key = range.begin; key < range.end; ++key) {
        Float value[kVectors];
        for (int v = 0; v < kVectors; ++v) value[v] = values(key, d + v * kLanes);
        ahead.fetch();
        for (int r = 0; r < kRows; ++r) {
            const Float weight = spread(weights[r * kPartition + key]);
            for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(weight, value[v], sum[r][v]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(out + r * head_dim + d + v * kLanes, sum[r][v]);
}

template <int kRows, class Rows>
void mix_floats(const Meeting& m, const Rows& values, Range range, Ahead& ahead, float* out) {
    const int64_t head_dim = m.tile.head_dim;
    int64_t d = 0;
    for (; d + kBlockVectors * kLanes <= head_dim; d += kBlockVectors * kLanes)
        mix_block<kRows, kBlockVectors>(m.scores, values, range, d, head_dim, ahead, out);
    for (; d < head_dim; d += kLanes) mix_block<kRows, 1>(m.scores, values, range, d, head_dim, ahead, out);
}

// Caps the scores of one row, and hides those that it does not see, in the vectors that `block` touches. Returns the
// largest one.
float mask_scores(const Meeting& m, Range block, Range seen, float* scores) {
    const Float nothing = spread(-__builtin_inff()), cap = spread(m.tile.softcap);
    Float top = nothing;
    for (int64_t i = block.begin / kLanes * kLanes; i < block.end; i += kLanes) {
        Float s = load(scores + i);
        if (m.tile.softcap > 0.0f) s = mul(tanh(div(s, cap)), cap);
        if (i < seen.begin || i + kLanes > seen.end) s = keep_lanes(s, seen.begin - i, seen.end - i, nothing);
        store(scores + i, s);
        top = max(s, top);
    }
    return max_of_lanes(top);
}

// Turns one row of scores into weights exp(score - largest), 0 outside of `seen`, in the vectors that `block` touches.
// put(i, weights) keeps those at i and returns what of them counts. Sums run through the whole partition vector by
// vector; what is not touched would add 0.
template <class Put>
void soften(const Meeting& m, Range block, Range seen, float* scores, int64_t row, Put put) {
    const float largest = mask_scores(m, block, seen, scores);
    const Float offset = spread(seen.empty() ? 0.0f : largest);
    Float sums[2] = {spread(0.0f), spread(0.0f)};
    for (int64_t i = block.begin / kLanes * kLanes; i < block.end; i += kLanes) {
        Float& sum = sums[i / kLanes % 2];
        sum = add(sum, put(i, exp_below_zero(sub(load(scores + i), offset))));
    }
    m.out.largest[row] = largest;
    m.out.denominator[row] = sum_of_lanes(add(sums[0], sums[1]));
}

// The weights take the place of the scores, each times the scale of its value where there are any.
void soften_in_place(const Meeting& m, Range block, Range seen, float* scores, int64_t row) {
    soften(m, block, seen, scores, row, [&](int64_t i, Float weights) {
        store(scores + i, m.value_scales ? mul(weights, load(m.value_scales + i)) : weights);
        return weights;
    });
}

// ---- what all arithmetics share: M says how rows are scored, softened and mixed, and how many at a time ----

template <int kRows, class M, int kVectors = kBlockVectors>
void score_up_to(int64_t vectors, const M& m, int64_t row, int64_t key, Ahead& ahead) {
    if constexpr (kVectors > 1)
        if (vectors < kVectors) return score_up_to<kRows, M, kVectors - 1>(vectors, m, row, key, ahead);
    m.template score<kRows, kVectors>(row, key, ahead);
}

// Rows first .. first + kRows of the tile, from scores to the weighted sum.
template <int kRows, class M>
void attend_rows(const M& m, int64_t first, Ahead& ahead) {
    const Meeting& base = m.base;
    const auto seen = [&](int64_t from, int64_t to) {
        return visible(base.tile, base.partition, base.token(from), base.token(to));
    };
    const Range block = seen(first, first + kRows - 1);
    if (block.empty()) {
        for (int r = 0; r < kRows; ++r) base.out.largest[first + r] = -__builtin_inff();
        return;
    }
    constexpr int64_t kStep = kBlockVectors * kLanes;
    for (int64_t key = block.begin / kStep * kStep; key < block.end; key += kStep)
        score_up_to<kRows>((block.end - key + kLanes - 1) / kLanes, m, first, key, ahead);
    for (int r = 0; r < kRows; ++r) m.weigh(block, seen(first + r, first + r), r, first + r);
    m.template mix<kRows>(block, ahead, base.out.out + first * base.tile.head_dim);
}

template <class M, int kRows = M::kMostRows>
void attend_row_block(int64_t rows, const M& m, int64_t first, Ahead& ahead) {
    if constexpr (kRows > 1)
        if (rows < kRows) return attend_row_block<M, kRows - 1>(rows, m, first, ahead);
    attend_rows<kRows>(m, first, ahead);
}

template <class M>
void attend_all_rows(const M& m, Ahead& ahead) {
    const RowTiles blocks(m.base.tile.rows(), M::kMostRows);
    for (int64_t i = 0, row = 0; i < blocks.count; row += blocks.size(i++))
        attend_row_block(blocks.size(i), m, row, ahead);
}

// ---- float32 ----

template <KVType kKeys, class Values>
struct FloatMeeting {
    static constexpr int kMostRows = kRowBlock;
    const Meeting& base;
    const Values& values;

    template <int kRows, int kVectors>
    void score(int64_t row, int64_t key, Ahead& ahead) const {
        score_block<kRows, kVectors, kKeys>(base, row, key, ahead);
    }
    void weigh(Range block, Range seen, int r, int64_t row) const {
        soften_in_place(base, block, seen, base.scores + r * kPartition, row);
    }
    template <int kRows>
    void mix(Range block, Ahead& ahead, float* out) const {
        mix_floats<kRows>(base, values, block, ahead, out);
    }
};

template <KVType kKeys, class Values>
void attend_floats(const Meeting& m, const Values& values, Ahead& ahead) {
    attend_all_rows(FloatMeeting<kKeys, Values>{m, values}, ahead);
}

// The scales of an int8 pool; `room` is for those of keys and of values.
inline void take_scales(Meeting& m, Range range, float* room) {
    m.key_scales = room;
    m.value_scales = room + kPartition;
    find_scales(m.tile, m.partition, range, m.tile.k_scale, room);
    find_scales(m.tile, m.partition, range, m.tile.v_scale, room + kPartition);
}

// `room` is for two more partitions of keys or values as floats.
template <KVType kType>
void attend_in(Meeting& m, Ahead& ahead, float* q, float* room) {
    const AttentionTile& tile = m.tile;
    pack_queries(tile, q);
    if constexpr (kType == KVType::Int8)
        for (int64_t i = 0; i < tile.rows() * tile.head_dim; i += tile.head_dim) hadamard_head(q + i, q + i, tile.head_dim);
    const Range range = all_visible(tile, m.partition);
    ValueRows rows;
    find_values(tile, m.partition, range, rows);
    float scales[kType == KVType::Int8 ? 2 * kPartition : 1];
    if constexpr (kType == KVType::Int8) take_scales(m, range, scales);
    const PoolRows<kType> values{rows};
    KeyVectors keys, wide;
    find_keys(tile, m.partition, range, room, keys);
    m.keys = &keys;
    if (tile.rows() <= kFewRows) return attend_floats<kType>(m, values, ahead);
    float* dense = room + kPartition * tile.head_dim;
    if constexpr (kType != KVType::Float32) {
        widen_keys<kType>(keys, range, tile.head_dim, dense, wide);
        m.keys = &wide;
        dense = room;
    }
    pack_values(values, range, tile.head_dim, dense);
    attend_floats<KVType::Float32>(m, DenseRows{dense, tile.head_dim}, ahead);
}

}  // namespace
}  // namespace pellucid

#if defined(PELLUCID_BFLOAT16_PAIRS)
#include "attention_pairs.h"
#endif
#if defined(PELLUCID_INT8_DOTS)
#include "attention_int8.h"
#endif

namespace pellucid {
namespace {

void attend_partition_impl(const AttentionTile& tile, int64_t partition, const NextPartition& next, PartialSoftmax out,
                           float* scratch) {
    float* scores = scratch;
    float* q = scores + kRowBlock * kPartition;
    float* room = q + tile.rows() * tile.head_dim;
    if (!next.present_was_next) Ahead(&tile, partition).fetch_all();
    Ahead ahead(next.tile, next.partition);
    Meeting m{.tile = tile,
              .partition = partition,
              .q = q,
              .keys = nullptr,
              .key_scales = nullptr,
              .value_scales = nullptr,
              .scores = scores,
              .out = out};
    switch (tile.kv_type) {
#if defined(PELLUCID_BFLOAT16_PAIRS)
        case KVType::BFloat16: return attend_pairs(m, ahead, reinterpret_cast<uint16_t*>(q), room);
#else
        case KVType::BFloat16: return attend_in<KVType::BFloat16>(m, ahead, q, room);
#endif
#if defined(PELLUCID_INT8_DOTS)
        case KVType::Int8: return attend_int8(m, ahead, q, room);
#else
        case KVType::Int8: return attend_in<KVType::Int8>(m, ahead, q, room);
#endif
        case KVType::Float32: return attend_in<KVType::Float32>(m, ahead, q, room);
        case KVType::Float16: return attend_in<KVType::Float16>(m, ahead, q, room);
    }
}

inline float exp_of(float x) {
    float lanes[kLanes];
    store(lanes, exp_below_zero(spread(x)));
    return lanes[0];
}

void merge_impl(PartialSoftmax total, PartialSoftmax part, int64_t rows, int64_t head_dim) {
    const float nothing = -__builtin_inff();
    for (int64_t r = 0; r < rows; ++r) {
        if (part.largest[r] == nothing) continue;
        const bool is_first = total.largest[r] == nothing;
        const float largest = is_first || part.largest[r] > total.largest[r] ? part.largest[r] : total.largest[r];
        const float old_factor = is_first ? 0.0f : exp_of(total.largest[r] - largest);
        const float new_factor = exp_of(part.largest[r] - largest);
        float* out = total.out + r * head_dim;
        const float* more = part.out + r * head_dim;
        for (int64_t d = 0; d < head_dim; d += kLanes) {
            const Float old = is_first ? spread(0.0f) : mul(load(out + d), spread(old_factor));
            store(out + d, fma(load(more + d), spread(new_factor), old));
        }
        const float old_denominator = is_first ? 0.0f : total.denominator[r] * old_factor;
        total.denominator[r] = old_denominator + part.denominator[r] * new_factor;
        total.largest[r] = largest;
    }
}

void finish_impl(PartialSoftmax total, const AttentionTile& tile, float* out, int64_t out_stride) {
    for (int64_t row = 0; row < tile.rows(); ++row) {
        float* to = out + row / tile.heads * out_stride + row % tile.heads * tile.head_dim;
        const Float inverse = spread(1.0f / total.denominator[row]);
        for (int64_t d = 0; d < tile.head_dim; d += kLanes)
            store(to + d, mul(load(total.out + row * tile.head_dim + d), inverse));
        if (tile.kv_type == KVType::Int8) hadamard_head(to, to, tile.head_dim);
    }
}

}  // namespace
}  // namespace pellucid
