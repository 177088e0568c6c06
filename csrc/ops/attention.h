// Attention of one tile over one partition of 256 positions, and how partitions are put together (online softmax,
// Milakov and Gimelshein 2018). Included after a simd header.
//
// Keys are transposed on the fly to panels [64 keys][D] -> [D][64], so that a vector holds one component of many keys:
//
//     scores[row][key]  = sum over d, ascending, of q[row][d] * k[key][d]     one chain per score
//     out[row][d]       = sum over keys, ascending, of p[row][key] * v[key][d]  one chain per component
//
// Both are computed in register blocks of up to kRowBlock rows, whatever shape fits. No chain depends on the shape.
// Keys that a row does not see have p = 0 exactly and change nothing, so it does not matter that a row beside it does.

#pragma once

#include <type_traits>

#include "vector_math.h"

namespace pellucid {
namespace {

constexpr int kRowBlock = 6;
constexpr int kPanelKeys = 64;
constexpr int kBlockVectors = kLanes == 16 ? 4 : 2;  // kRowBlock * kBlockVectors sums fit the registers

struct Range {
    int64_t begin, end;  // of positions, counted from the start of the partition

    bool empty() const { return begin >= end; }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// What the tokens from `first` to `last` of the tile see of the partition, together.
inline Range visible(const AttentionTile& tile, int64_t partition, int64_t first, int64_t last) {
    const int64_t start = partition * kPartition;
    const int64_t end = tile.first_position + last + 1 - start;
    const int64_t position = tile.first_position + first;
    const int64_t begin = tile.window > position ? 0 : position - tile.window + 1 - start;
    return {larger(begin, 0), smaller(end, kPartition)};
}

inline Range all_visible(const AttentionTile& tile, int64_t partition) {
    return visible(tile, partition, 0, tile.num_tokens - 1);
}

// slots[i] is where position i of the partition lies, for i in `range`.
inline void find_slots(const AttentionTile& tile, int64_t partition, Range range, int64_t* slots) {
    const int64_t start = partition * kPartition;
    for (int64_t i = range.begin; i < range.end;) {
        const int64_t block = (start + i) / tile.block_size, offset = (start + i) % tile.block_size;
        const int64_t count = smaller(tile.block_size - offset, range.end - i);
        const int64_t slot = tile.block_table[block] * tile.block_size + offset;
        for (int64_t c = 0; c < count; ++c) slots[i + c] = slot + c;
        i += count;
    }
}

// The rows of a head's pool, as floats.
template <KVType kType>
struct PoolRows {
    using Element = std::conditional_t<kType == KVType::Float32, float, uint16_t>;

    const Element* data;
    int64_t stride;
    const int64_t* slots;

    const Element* row(int64_t key) const { return data + slots[key] * stride; }
    Float operator()(int64_t key, int64_t d) const {
        if constexpr (kType == KVType::Float32) {
            return load(row(key) + d);
        } else if constexpr (kType == KVType::BFloat16) {
            return load_bfloat16(row(key) + d);
        } else {
            return load_half(row(key) + d);
        }
    }
    void fetch(int64_t key, int64_t head_dim) const {
        constexpr int64_t kPerLine = 64 / sizeof(Element);
        for (int64_t d = 0; d < head_dim; d += kPerLine) __builtin_prefetch(row(key) + d, 0, 2);
    }
};
// Fetches the keys and values of the partition that comes next, a row at a time, all the while the present one is
// computed. Else memory and core would take turns to rest.
template <class Rows>
class Ahead {
public:
    Ahead(const Rows& keys, const Rows& values, Range range, int64_t head_dim)
        : rows_{keys, values}, next_(2 * range.begin), end_(2 * range.end), head_dim_(head_dim) {}

    void fetch() {
        if (next_ >= end_) return;
        rows_[next_ % 2].fetch(next_ / 2, head_dim_);
        ++next_;
    }

private:
    Rows rows_[2];
    int64_t next_, end_, head_dim_;
};

struct DenseRows {
    const float* data;
    int64_t stride;
    Float operator()(int64_t key, int64_t d) const { return load(data + key * stride + d); }
};

template <class F>
inline void with_pool_rows(const AttentionTile& tile, F f) {
    const auto call = [&]<KVType kType>() {
        f([](const void* data, int64_t stride, const int64_t* slots) {
            using Rows = PoolRows<kType>;
            return Rows{static_cast<const typename Rows::Element*>(data), stride, slots};
        });
    };
    switch (tile.kv_type) {
        case KVType::Float32: return call.template operator()<KVType::Float32>();
        case KVType::BFloat16: return call.template operator()<KVType::BFloat16>();
        case KVType::Float16: return call.template operator()<KVType::Float16>();
    }
}

// Blocks lie anywhere in memory, where no hardware foresees them: keys some way ahead are fetched here, and the values,
// which are next, as well. (Those that were fetched while the last partition was computed get nearer by it.)
template <class Rows>
void pack_keys(const Rows& rows, const Rows& values, Range range, int64_t head_dim, Ahead<Rows>& ahead, float* panels) {
    constexpr int64_t kAhead = 32;
    for (int64_t key = range.begin; key < smaller(range.begin + kAhead, range.end); ++key) rows.fetch(key, head_dim);
    for (int64_t key = range.begin / kLanes * kLanes; key < range.end; key += kLanes) {
        for (int64_t i = larger(key, range.begin); i < smaller(key + kLanes, range.end); ++i) {
            if (i + kAhead < range.end) rows.fetch(i + kAhead, head_dim);
            values.fetch(i, head_dim);
            ahead.fetch();
        }
        float* panel = panels + key / kPanelKeys * kPanelKeys * head_dim + key % kPanelKeys;
        for (int64_t d = 0; d < head_dim; d += kLanes) {
            Float m[kLanes];
            if (key >= range.begin && key + kLanes <= range.end) {
                for (int i = 0; i < kLanes; ++i) m[i] = rows(key + i, d);
            } else {
                for (int i = 0; i < kLanes; ++i)
                    m[i] = key + i >= range.begin && key + i < range.end ? rows(key + i, d) : spread(0.0f);
            }
            transpose(m);
            for (int i = 0; i < kLanes; ++i) store(panel + (d + i) * kPanelKeys, m[i]);
        }
    }
}

template <class Rows>
void pack_values(const Rows& rows, Range range, int64_t head_dim, float* out) {
    for (int64_t key = range.begin; key < range.end; ++key)
        for (int64_t d = 0; d < head_dim; d += kLanes) store(out + key * head_dim + d, rows(key, d));
}

void pack_queries(const AttentionTile& tile, float* out) {
    const Float scale = spread(tile.scale);
    for (int64_t token = 0; token < tile.num_tokens; ++token) {
        const float* q = tile.q + token * tile.q_stride;
        for (int64_t i = 0; i < tile.heads * tile.head_dim; i += kLanes, out += kLanes)
            store(out, mul(load(q + i), scale));
    }
}

// kRows rows of queries times kVectors vectors of keys.
template <int kRows, int kVectors, class Next>
void score_block(const float* q, int64_t head_dim, const float* panel, Next& ahead, float* scores) {
    Float sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = spread(0.0f);
    for (int64_t d = 0; d < head_dim; ++d) {
        Float k[kVectors];
        for (int v = 0; v < kVectors; ++v) k[v] = load(panel + d * kPanelKeys + v * kLanes);
        ahead.fetch();
        for (int r = 0; r < kRows; ++r) {
            const Float component = spread(q[r * head_dim + d]);
            for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(component, k[v], sum[r][v]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(scores + r * kPartition + v * kLanes, sum[r][v]);
}

template <int kRows, int kVectors = kBlockVectors, class Next>
void score_up_to(int64_t vectors, const float* q, int64_t head_dim, const float* panel, Next& ahead, float* scores) {
    if constexpr (kVectors > 1)
        if (vectors < kVectors) return score_up_to<kRows, kVectors - 1>(vectors, q, head_dim, panel, ahead, scores);
    score_block<kRows, kVectors>(q, head_dim, panel, ahead, scores);
}

// kRows rows of weights times kVectors vectors of all values in `range`.
template <int kRows, int kVectors, class Rows, class Next>
void mix_block(const float* weights, const Rows& values, Range range, int64_t d, int64_t head_dim, Next& ahead,
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

template <int kRows, class Rows, class Next>
void mix(const float* weights, const Rows& values, Range range, int64_t head_dim, Next& ahead, float* out) {
    int64_t d = 0;
    for (; d + kBlockVectors * kLanes <= head_dim; d += kBlockVectors * kLanes)
        mix_block<kRows, kBlockVectors>(weights, values, range, d, head_dim, ahead, out);
    for (; d < head_dim; d += kLanes) mix_block<kRows, 1>(weights, values, range, d, head_dim, ahead, out);
}

// Turns one row of scores into weights exp(score - largest), 0 outside of `seen`, in the vectors that `block` touches.
// Sums run through the whole partition vector by vector; what is not touched would add 0.
void soften(const AttentionTile& tile, Range block, Range seen, float* scores, float* largest, float* denominator) {
    const int64_t first = block.begin / kLanes * kLanes;
    const Float nothing = spread(-__builtin_inff()), cap = spread(tile.softcap);
    Float top = nothing;
    for (int64_t i = first; i < block.end; i += kLanes) {
        Float s = load(scores + i);
        if (tile.softcap > 0.0f) s = mul(tanh(div(s, cap)), cap);
        if (i < seen.begin || i + kLanes > seen.end) s = keep_lanes(s, seen.begin - i, seen.end - i, nothing);
        store(scores + i, s);
        top = max(s, top);
    }
    *largest = max_of_lanes(top);
    const Float offset = spread(seen.empty() ? 0.0f : *largest);
    Float sums[2] = {spread(0.0f), spread(0.0f)};
    for (int64_t i = first; i < block.end; i += kLanes) {
        const Float weight = exp(sub(load(scores + i), offset));
        store(scores + i, weight);
        Float& sum = sums[i / kLanes % 2];
        sum = add(sum, weight);
    }
    *denominator = sum_of_lanes(add(sums[0], sums[1]));
}

// Rows first .. first + kRows of the tile, from scores to the weighted sum.
template <int kRows, class Rows, class Next>
void attend_rows(const AttentionTile& tile, int64_t partition, int64_t first, const float* q, const float* panels,
                 const Rows& values, Next& ahead, float* scores, PartialSoftmax out) {
    const auto token = [&](int64_t row) { return row / tile.heads; };
    const int64_t head_dim = tile.head_dim;
    const Range block = visible(tile, partition, token(first), token(first + kRows - 1));
    if (block.empty()) {
        for (int r = 0; r < kRows; ++r) out.largest[first + r] = -__builtin_inff();
        return;
    }
    constexpr int64_t kStep = kBlockVectors * kLanes;
    for (int64_t key = block.begin / kStep * kStep; key < block.end; key += kStep) {
        const int64_t vectors = (block.end - key + kLanes - 1) / kLanes;
        const float* panel = panels + key / kPanelKeys * kPanelKeys * head_dim + key % kPanelKeys;
        score_up_to<kRows>(vectors, q + first * head_dim, head_dim, panel, ahead, scores + key);
    }
    for (int r = 0; r < kRows; ++r) {
        const int64_t row = first + r;
        const Range seen = visible(tile, partition, token(row), token(row));
        soften(tile, block, seen, scores + r * kPartition, out.largest + row, out.denominator + row);
    }
    mix<kRows>(scores, values, block, head_dim, ahead, out.out + first * head_dim);
}

template <int kRows = kRowBlock, class Rows, class Next>
void attend_row_block(int64_t rows, const AttentionTile& tile, int64_t partition, int64_t first, const float* q,
                      const float* panels, const Rows& values, Next& ahead, float* scores, PartialSoftmax out) {
    if constexpr (kRows > 1)
        if (rows < kRows)
            return attend_row_block<kRows - 1>(rows, tile, partition, first, q, panels, values, ahead, scores, out);
    attend_rows<kRows>(tile, partition, first, q, panels, values, ahead, scores, out);
}

template <class Rows, class Next>
void attend_all_rows(const AttentionTile& tile, int64_t partition, const float* q, const float* panels,
                     const Rows& values, Next& ahead, float* scores, PartialSoftmax out) {
    for (int64_t row = 0; row < tile.rows(); row += kRowBlock)
        attend_row_block(tile.rows() - row, tile, partition, row, q, panels, values, ahead, scores, out);
}

void attend_partition_impl(const AttentionTile& tile, int64_t partition, const NextPartition& next, PartialSoftmax out,
                           float* scratch) {
    const int64_t head_dim = tile.head_dim;
    float* q = scratch;
    float* panels = q + tile.rows() * head_dim;
    float* dense = panels + kPartition * head_dim;
    float* scores = dense + kPartition * head_dim;
    const Range range = all_visible(tile, partition);
    const Range next_range = next.tile ? all_visible(*next.tile, next.partition) : Range{0, 0};
    int64_t slots[kPartition], next_slots[kPartition];
    find_slots(tile, partition, range, slots);
    if (next.tile) find_slots(*next.tile, next.partition, next_range, next_slots);
    pack_queries(tile, q);
    with_pool_rows(tile, [&](const auto& rows) {
        const auto keys = rows(tile.k, tile.slot_stride, slots), values = rows(tile.v, tile.slot_stride, slots);
        const AttentionTile& then = next.tile ? *next.tile : tile;
        Ahead ahead(rows(then.k, then.slot_stride, next_slots), rows(then.v, then.slot_stride, next_slots), next_range,
                    head_dim);
        pack_keys(keys, values, range, head_dim, ahead, panels);
        if (tile.rows() <= kRowBlock) {  // values are used once: read them where they are
            attend_all_rows(tile, partition, q, panels, values, ahead, scores, out);
        } else {
            pack_values(values, range, head_dim, dense);
            attend_all_rows(tile, partition, q, panels, DenseRows{dense, head_dim}, ahead, scores, out);
        }
    });
}

inline float exp_of(float x) {
    float lanes[kLanes];
    store(lanes, exp(spread(x)));
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
    }
}

}  // namespace
}  // namespace pellucid
