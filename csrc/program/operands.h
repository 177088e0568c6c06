// What instructions work on: columns of buffers in the arena, and tensors that live outside of it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "op_table.h"

namespace pellucid {

constexpr int64_t kMaxColumns = int64_t{1} << 24;  // of a buffer

// Columns [begin, begin + count) of every row of a buffer. Without a buffer it is an operand that is not there.
struct Columns {
    int buffer = -1;
    int64_t begin = 0;
    int64_t count = 0;

    bool operator==(const Columns&) const = default;
    explicit operator bool() const { return buffer >= 0; }
    // How many columns both have.
    int64_t common(const Columns& other) const {
        if (buffer != other.buffer) return 0;
        const int64_t first = std::max(begin, other.begin), end = std::min(begin + count, other.begin + other.count);
        return std::max<int64_t>(0, end - first);
    }
};

// A dense fp32 tensor [rows, columns] that somebody else made. `owner` keeps it alive.
struct FloatTensor {
    const float* data = nullptr;
    int64_t rows = 0;
    int64_t columns = 0;
    std::shared_ptr<const void> owner;

    explicit operator bool() const { return data != nullptr; }
};

// One layer's keys and values, as attention reads them: what a head has in a block lies together. Values are
// [num_blocks, num_kv_heads, block_size, head_dim], keys [num_blocks, num_kv_heads, head_dim in 32-bit words, block_size];
// a word has 1, 2 or 4 neighbouring components. With Int8 the scales are beside them, [num_blocks, num_kv_heads, block_size].
struct KVPool {
    void* k = nullptr;
    void* v = nullptr;
    float* k_scale = nullptr;
    float* v_scale = nullptr;
    KVType type = KVType::Float32;
    int64_t num_blocks = 0;
    int64_t block_size = 0;
    int64_t num_kv_heads = 0;
    int64_t head_dim = 0;
    std::shared_ptr<const void> owner;

    int64_t slot_columns() const { return num_kv_heads * head_dim; }
    // Which of all rows of heads the one of a slot is, as values and scales are counted.
    int64_t row(int64_t slot, int64_t group) const {
        return (slot / block_size * num_kv_heads + group) * block_size + slot % block_size;
    }
};

struct FloatView {
    float* data;
    int64_t stride;  // floats between rows

    float* row(int64_t r) const { return data + r * stride; }
};

enum class BufferKind : uint8_t {
    Float,      // [rows, columns] fp32
    Quantised,  // QuantRows of `columns` columns
    Output,     // fp32 too, in the caller's memory
};

struct Buffer {
    BufferKind kind = BufferKind::Float;
    int64_t columns = 0;
    // Nobody reads it: then it has no place, and whoever would write it makes do with scratch memory.
    bool unread = false;
    int64_t place = 0;  // bytes from the start of the arena
    Outliers outliers = {};  // of a quantised one

    int64_t bytes(int64_t rows) const;
};

}  // namespace pellucid
