// Keys and values of one partition of a paged pool: where they lie, how they are fetched, packed and made floats.
// Included after a simd header.
//
// Keys are transposed 32-bit word by word, whatever numbers are in a word, to panels [64 keys][words] -> [words][64],
// so that a vector holds the same components of many keys:
//
//     float32   1 number per word        bfloat16, float16   2, the lower half first        int8   4, the lowest first

#pragma once

#include <type_traits>


#include "vector_math.h"

namespace pellucid {
namespace {

constexpr int kPanelKeys = 64;

struct Range {
    int64_t begin, end;  // of positions, counted from the start of the partition

    bool empty() const { return begin >= end; }
    bool has(int64_t key) const { return key >= begin && key < end; }
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

// Calls f(first, count, block, offset) for each run of positions in `range` that lie side by side in a block.
template <class F>
inline void for_blocks(const AttentionTile& tile, int64_t partition, Range range, F f) {
    const int64_t start = partition * kPartition;
    for (int64_t i = range.begin; i < range.end;) {
        const int64_t block = (start + i) / tile.block_size, offset = (start + i) % tile.block_size;
        const int64_t count = smaller(tile.block_size - offset, range.end - i);
        f(i, count, int64_t{tile.block_table[block]}, offset);
        i += count;
    }
}

// offsets[i] is how many bytes after slot 0 position i of the partition lies, for i in `range`.
inline void find_offsets(const AttentionTile& tile, int64_t partition, Range range, int64_t* offsets) {
    const int64_t stride = tile.slot_stride * kv_bytes(tile.kv_type);
    for_blocks(tile, partition, range, [&](int64_t first, int64_t count, int64_t block, int64_t offset) {
        const int64_t base = (block * tile.block_size + offset) * stride;
        for (int64_t i = 0; i < count; ++i) offsets[first + i] = base + i * stride;
    });
}

// The scales of an int8 pool for all positions of the partition; 0 for those outside of `range`.
inline void find_scales(const AttentionTile& tile, int64_t partition, Range range, const float* pool, float* scales) {
    for (int64_t i = 0; i < kPartition; i += kLanes) store(scales + i, spread(0.0f));
    for_blocks(tile, partition, range, [&](int64_t first, int64_t count, int64_t block, int64_t offset) {
        const float* from = pool + (block * tile.block_size + offset) * tile.scale_stride;
        for (int64_t i = 0; i < count; ++i) scales[first + i] = from[i * tile.scale_stride];
    });
}

// ---- numbers ----

// Number `i` of each 32-bit word, as floats.
template <KVType kType>
struct Words {
    static constexpr int kNumbers = 4 / kv_bytes(kType);

    static Float number(const float* words, int i) {
        if constexpr (kType == KVType::Float32) return load(words);
        const Int w = load_bytes(words);
        if constexpr (kType == KVType::BFloat16) return i == 0 ? first_bfloat16(w) : second_bfloat16(w);
        if constexpr (kType == KVType::Float16) return i == 0 ? first_half(w) : second_half(w);
        switch (i) {
            case 0: return int8_of<0>(w);
            case 1: return int8_of<1>(w);
            case 2: return int8_of<2>(w);
            default: return int8_of<3>(w);
        }
    }
};

// The rows of a head's pool.
template <KVType kType>
struct PoolRows {
    const std::byte* data;
    const int64_t* offsets;

    const std::byte* row(int64_t key) const { return data + offsets[key]; }
    Float operator()(int64_t key, int64_t d) const {
        const std::byte* p = row(key) + d * kv_bytes(kType);
        if constexpr (kType == KVType::Float32) return load(reinterpret_cast<const float*>(p));
        if constexpr (kType == KVType::BFloat16) return load_bfloat16(reinterpret_cast<const uint16_t*>(p));
        if constexpr (kType == KVType::Float16) return load_half(reinterpret_cast<const uint16_t*>(p));
        if constexpr (kType == KVType::Int8) return load_int8(reinterpret_cast<const int8_t*>(p));
    }
};

struct DenseRows {
    const float* data;
    int64_t stride;
    Float operator()(int64_t key, int64_t d) const { return load(data + key * stride + d); }
};

// ---- fetching ----

// To the cache of level 1 if it is needed soon, else to the one behind it.
template <bool kSoon>
inline void fetch_row(const std::byte* row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, kSoon ? 3 : 2);
}

// Fetches the keys and values of the partition that comes next, a position at a time, all the while the present one is
// computed. Else memory and core would take turns to rest.
class Ahead {
public:
    Ahead(const NextPartition& next, int64_t* room) {
        if (!next.tile) return;
        const AttentionTile& tile = *next.tile;
        const Range range = all_visible(tile, next.partition);
        find_offsets(tile, next.partition, range, room);
        k_ = static_cast<const std::byte*>(tile.k);
        v_ = static_cast<const std::byte*>(tile.v);
        bytes_ = tile.head_dim * kv_bytes(tile.kv_type);
        next_ = room + range.begin;
        end_ = room + range.end;
    }

    void fetch() {
        if (next_ == end_) return;
        fetch_row<false>(k_ + *next_, bytes_);
        fetch_row<false>(v_ + *next_, bytes_);
        ++next_;
    }

private:
    const std::byte* k_ = nullptr;
    const std::byte* v_ = nullptr;
    int64_t bytes_ = 0;
    const int64_t* next_ = nullptr;
    const int64_t* end_ = nullptr;
};

// ---- packing ----

// kLanes keys from `key` on, of `words` words each, to their places in a panel. Keys outside of `range` become 0.
template <class Row>
inline void transpose_keys(Row row, int64_t key, Range range, int64_t words, float* panel) {
    const bool all = range.has(key) && range.has(key + kLanes - 1);
    for (int64_t w = 0; w < words; w += kLanes) {
        const int count = static_cast<int>(smaller(kLanes, words - w));
        Float m[kLanes];  // bits, which nothing but a move touches
        if (all && count == kLanes) {
            for (int i = 0; i < kLanes; ++i) m[i] = load(row(key + i) + w);
        } else {
            for (int i = 0; i < kLanes; ++i)
                m[i] = range.has(key + i) ? load_up_to(row(key + i) + w, count) : spread(0.0f);
        }
        transpose(m);
        if (count == kLanes) {
            for (int i = 0; i < kLanes; ++i) store(panel + (w + i) * kPanelKeys, m[i]);
        } else {
            for (int i = 0; i < count; ++i) store(panel + (w + i) * kPanelKeys, m[i]);
        }
    }
}

// Blocks lie anywhere in memory, where no hardware foresees them: keys some way ahead are fetched here, and the values,
// which are next, as well. (Those that were fetched while the last partition was computed get nearer by it.)
template <KVType kType>
void pack_keys(const PoolRows<kType>& keys, const PoolRows<kType>& values, Range range, int64_t head_dim, Ahead& ahead,
               float* panels) {
    constexpr int64_t kAhead = 32;
    const int64_t bytes = head_dim * kv_bytes(kType), words = bytes / 4;
    const auto row = [&](int64_t key) { return reinterpret_cast<const float*>(keys.row(key)); };
        for (int64_t i = range.begin; i < smaller(range.begin + kAhead, range.end); ++i) fetch_row<true>(keys.row(i), bytes);
    for (int64_t key = range.begin / kLanes * kLanes; key < range.end; key += kLanes) {
        for (int64_t i = larger(key, range.begin); i < smaller(key + kLanes, range.end); ++i) {
            if (i + kAhead < range.end) fetch_row<true>(keys.row(i + kAhead), bytes);
            fetch_row<true>(values.row(i), bytes);
            if (i % 4 == 0) ahead.fetch();
        }
        float* panel = panels + key / kPanelKeys * kPanelKeys * words + key % kPanelKeys;
        transpose_keys(row, key, range, words, panel);
    }
}

// Panels of words to panels of floats.
template <KVType kType>
void widen_keys(const float* panels, Range range, int64_t head_dim, float* out) {
    using Number = Words<kType>;
    const int64_t words = head_dim / Number::kNumbers;
    for (int64_t key = range.begin / kLanes * kLanes; key < range.end; key += kLanes) {
        const float* from = panels + key / kPanelKeys * kPanelKeys * words + key % kPanelKeys;
        float* to = out + key / kPanelKeys * kPanelKeys * head_dim + key % kPanelKeys;
        for (int64_t w = 0; w < words; ++w, from += kPanelKeys)
            for (int i = 0; i < Number::kNumbers; ++i, to += kPanelKeys) store(to, Number::number(from, i));
    }
}

template <KVType kType>
void pack_values(const PoolRows<kType>& rows, Range range, int64_t head_dim, float* out) {
    for (int64_t key = range.begin; key < range.end; ++key)
        for (int64_t d = 0; d < head_dim; d += kLanes) store(out + key * head_dim + d, rows(key, d));
}

}  // namespace
}  // namespace pellucid
