// Keys and values of one partition of a paged pool: where they lie, how they are fetched, packed and made floats.
// Included after a simd header.
//
// Of each head and block the values lie row by row, the keys as attention reads them: a vector holds the same components
// of many keys. They are handled in 32-bit words, whatever numbers are in a word, and read from blocks [words][block_size], or from panels [words][64]
// where a block is no whole number of vectors, and where they were widened for many rows.
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
    const int64_t start = partition * kPartition + range.begin, size = tile.block_size;
    const int32_t* block = tile.block_table + start / size;
    int64_t offset = start % size;
    for (int64_t i = range.begin; i < range.end; ++block, offset = 0) {
        const int64_t count = smaller(size - offset, range.end - i);
        f(i, count, int64_t{*block}, offset);
        i += count;
    }
}

inline int64_t row_bytes(const AttentionTile& tile) { return tile.head_dim * kv_bytes(tile.kv_type); }
// Of all heads, and of one.
inline int64_t block_bytes(const AttentionTile& tile) {
    return tile.block_size * tile.slot_columns * kv_bytes(tile.kv_type);
}
inline int64_t head_block_bytes(const AttentionTile& tile) { return tile.block_size * row_bytes(tile); }

// The keys and the values of the tile's head in a block.
inline const std::byte* keys_of(const AttentionTile& tile, int64_t block) {
    return static_cast<const std::byte*>(tile.k) + block * block_bytes(tile);
}
inline const std::byte* values_of(const AttentionTile& tile, int64_t block) {
    return static_cast<const std::byte*>(tile.v) + block * block_bytes(tile);
}

// Where the values of the positions of a partition lie.
struct ValueRows {
    const std::byte* row[kPartition];

    // Lets those beside `range` be zeros, up to multiples of `unit`.
    void surround(Range range, int64_t unit) {
        alignas(64) static constexpr std::byte kZeros[4 * kMaxHeadDim] = {};
        for (int64_t i = range.begin / unit * unit; i < range.begin; ++i) row[i] = kZeros;
        for (int64_t i = range.end; i % unit != 0; ++i) row[i] = kZeros;
    }
};

// Only for positions in `range`.
inline void find_values(const AttentionTile& tile, int64_t partition, Range range, ValueRows& values) {
    const int64_t bytes = row_bytes(tile);
    for_blocks(tile, partition, range, [&](int64_t first, int64_t count, int64_t block, int64_t offset) {
        const std::byte* row = values_of(tile, block) + offset * bytes;
        for (int64_t i = 0; i < count; ++i, row += bytes) values.row[first + i] = row;
    });
}

inline const float* scales_of(const AttentionTile& tile, const float* pool, int64_t block) {
    return pool + block * tile.block_size * tile.slot_columns / tile.head_dim;
}

// The scales of an int8 pool for `range`; 0 for what else lies in the vectors that it touches.
inline void find_scales(const AttentionTile& tile, int64_t partition, Range range, const float* pool, float* scales) {
    for (const int64_t i : {range.begin, range.end - 1}) store(scales + i / kLanes * kLanes, spread(0.0f));
    for_blocks(tile, partition, range, [&](int64_t first, int64_t count, int64_t block, int64_t offset) {
        const float* from = scales_of(tile, pool, block) + offset;
        for_vectors(count, [&](int64_t i, int n) { store_up_to(scales + first + i, load_up_to(from + i, n), n); });
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

// Values as they lie in the pool.
template <KVType kType>
struct PoolRows {
    const ValueRows& values;

    Float operator()(int64_t key, int64_t d) const {
        const std::byte* p = values.row[key] + d * kv_bytes(kType);
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

// Fetches the keys and values of a partition a little at a time, all the while another one is computed: else memory and
// core would take turns to rest, and blocks lie anywhere in memory, where no hardware foresees them. They are fetched to
// all caches: what is evicted to level 2 meanwhile still arrives there sooner than if it was asked for there.
class Ahead {
public:
    Ahead(const AttentionTile* tile, int64_t partition) {
        if (!tile) return;
        lines_ = (head_block_bytes(*tile) + kLine - 1) / kLine;
        for_blocks(*tile, partition, all_visible(*tile, partition), [&](int64_t, int64_t, int64_t block, int64_t) {
            runs_[num_runs_++] = keys_of(*tile, block);
            runs_[num_runs_++] = values_of(*tile, block);
            if (!tile->k_scale) return;
            __builtin_prefetch(scales_of(*tile, tile->k_scale, block), 0, 3);
            __builtin_prefetch(scales_of(*tile, tile->v_scale, block), 0, 3);
        });
    }

    void fetch() {
        if (left_ <= 0) {
            if (run_ == num_runs_) return;
            next_ = runs_[run_++];
            left_ = lines_;
        }
        for (int i = 0; i < kAtOnce; ++i) __builtin_prefetch(next_ + i * kLine, 0, 3);
        next_ += kAtOnce * kLine;
        left_ -= kAtOnce;
    }

    void fetch_all() {
        while (left_ > 0 || run_ < num_runs_) fetch();
    }

private:
    static constexpr int64_t kAtOnce = 4;

    const std::byte* runs_[2 * kPartition];  // of each block the keys, the values
    int64_t num_runs_ = 0, run_ = 0;
    int64_t lines_ = 0, left_ = 0;  // of a run, of the present one
    const std::byte* next_ = nullptr;
};

// ---- packing ----

// Columns [0, count) of a matrix of words, to a panel; at most kLanes.
inline void copy_columns(const float* from, int64_t from_stride, int64_t rows, int64_t count, float* to) {
    for (int64_t r = 0; r < rows; ++r, from += from_stride, to += kPanelKeys)
        store_up_to(to, load_up_to(from, static_cast<int>(count)), static_cast<int>(count));
}

// Where the keys of a partition lie: word w of keys [i * kLanes, (i + 1) * kLanes) is at vectors[i] + w * stride. Lanes of
// keys that nobody sees hold anything.
struct KeyVectors {
    const float* vectors[kPartition / kLanes];
    int64_t stride;
};

inline void point_to_panels(const float* panels, int64_t words, KeyVectors& keys) {
    for (int64_t i = 0; i < kPartition / kLanes; ++i)
        keys.vectors[i] = panels + i * kLanes / kPanelKeys * kPanelKeys * words + i * kLanes % kPanelKeys;
    keys.stride = kPanelKeys;
}

// Finds the keys from `range` on back to a multiple of kPanelKeys, in place if that can be. `panels` has room for all.
inline void find_keys(const AttentionTile& tile, int64_t partition, Range range, float* panels, KeyVectors& keys) {
    const int64_t words = row_bytes(tile) / 4;
    const auto words_of = [&](int64_t block) { return reinterpret_cast<const float*>(keys_of(tile, block)); };
    if (tile.block_size % kLanes == 0) {
        const Range whole{range.begin / kPanelKeys * kPanelKeys, range.end};
        for_blocks(tile, partition, whole, [&](int64_t first, int64_t count, int64_t block, int64_t offset) {
            for (int64_t i = 0; i < count; i += kLanes)
                keys.vectors[(first + i) / kLanes] = words_of(block) + offset + i;
        });
        keys.stride = tile.block_size;
        return;
    }
    point_to_panels(panels, words, keys);
    for_blocks(tile, partition, range, [&](int64_t first, int64_t count, int64_t block, int64_t offset) {
        for (int64_t key = first, end = first + count; key < end;) {
            const int64_t run = smaller(end - key, kLanes - key % kLanes);
            float* to = panels + (keys.vectors[key / kLanes] - panels) + key % kLanes;
            copy_columns(words_of(block) + offset + (key - first), tile.block_size, words, run, to);
            key += run;
        }
    });
}

// From words to panels of floats, from the same multiple of kPanelKeys on.
template <KVType kType>
void widen_keys(const KeyVectors& keys, Range range, int64_t head_dim, float* panels, KeyVectors& wide) {
    using Number = Words<kType>;
    point_to_panels(panels, head_dim, wide);
    for (int64_t i = range.begin / kPanelKeys * kPanelKeys / kLanes; i * kLanes < range.end; ++i) {
        const float* from = keys.vectors[i];
        float* to = panels + (wide.vectors[i] - panels);
        for (int64_t w = 0; w < head_dim / Number::kNumbers; ++w, from += keys.stride)
            for (int n = 0; n < Number::kNumbers; ++n, to += kPanelKeys) store(to, Number::number(from, n));
    }
}

template <KVType kType>
void pack_values(const PoolRows<kType>& rows, Range range, int64_t head_dim, float* out) {
    for (int64_t key = range.begin; key < range.end; ++key)
        for (int64_t d = 0; d < head_dim; d += kLanes) store(out + key * head_dim + d, rows(key, d));
}

}  // namespace
}  // namespace pellucid
