// The ops beside the matrix products, once per instruction set. The rules of kernel_table.h hold here too.
//
// All work on one row, or on one tile of attention, and are single-threaded. Row functions take any n >= 0. Those on
// single elements may get a row in parts, cut anywhere. `out` may be one of the inputs.

#pragma once

#include <cstdint>

#include "sampling_ops.h"

namespace pellucid {

// How a KV pool holds its numbers. Float16 has 11 bits of mantissa to BFloat16's 8, in as many bytes; what is beyond
// its range, which keys and values are far from, becomes +-65504.
// Int8 numbers of one head in one slot share a float32 scale; what is rounded is the head's Hadamard transform.
enum class KVType : uint8_t { Float32, BFloat16, Float16, Int8 };

constexpr int64_t kv_bytes(KVType type) { return type == KVType::Float32 ? 4 : type == KVType::Int8 ? 1 : 2; }

// Attention of the heads that share one key/value head, for consecutive tokens of one sequence.
// Row r of the tile is head r % heads of token r / heads.
struct AttentionTile {
    const float* q;      // first token, first head; the heads of a token lie side by side
    int64_t q_stride;    // floats between tokens
    int64_t num_tokens;  // num_tokens * heads <= kMaxTileRows unless num_tokens is 1
    int64_t heads;
    int64_t head_dim;
    int64_t first_position;  // of the first token
    const void* k;           // of this key/value head in block 0; see KVPool
    const void* v;           // likewise
    KVType kv_type;
    int64_t slot_columns;  // elements that a slot takes: G * D
    const float* k_scale;  // Int8 only: of this key/value head in block 0
    const float* v_scale;
    const int32_t* block_table;
    int64_t block_size;
    float scale;
    int64_t window;  // positions that a token sees, itself included; INT64_MAX for all
    float softcap;   // 0 for none

    int64_t rows() const { return num_tokens * heads; }
};

// What the calling thread attends next, if that is known, so that its keys and values can be fetched meanwhile. It has
// the shape and the pool of the present tile.
struct NextPartition {
    const AttentionTile* tile = nullptr;
    int64_t partition = 0;
    bool present_was_next = false;  // so those of the present one have been fetched
};

constexpr int64_t kPartition = 256;   // positions of one softmax; counted from position 0
constexpr int64_t kMaxTileRows = 96;  // enough to read K and V from the cache rarely
constexpr int64_t kMaxHeadDim = 256;

// A softmax not yet divided by its denominator, of rows of a tile over one or more partitions.
// `largest` is -inf, and nothing else is set, where a row saw no key at all.
struct PartialSoftmax {
    float* largest;      // [rows] the largest score
    float* denominator;  // [rows] sum of exp(score - largest)
    float* out;          // [rows, head_dim] sum of exp(score - largest) * v
};

// Room that attend_partition needs, in floats.
constexpr int64_t attention_scratch_floats(int64_t rows, int64_t head_dim) {
    return rows * head_dim + 2 * kPartition * head_dim + 8 * kPartition;
}

struct OpTable {
    void (*add)(const float* a, const float* b, float* out, int64_t n);
    void (*scale)(const float* x, float factor, float* out, int64_t n);
    void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t n);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t n);
    void (*silu_mul)(const float* gate, const float* up, float* out, int64_t n);
    void (*gelu_mul)(const float* gate, const float* up, float* out, int64_t n);
    void (*gelu_tanh_mul)(const float* gate, const float* up, float* out, int64_t n);
    void (*gelu)(const float* x, float* out, int64_t n);
    void (*gelu_tanh)(const float* x, float* out, int64_t n);
    void (*softcap)(const float* x, float cap, float* out, int64_t n);
    // Rotates the first 2 * half components of one head of n; the rest is copied. Component i pairs with i + half.
    void (*rotate)(const float* x, const float* cos, const float* sin, int64_t half, float* out, int64_t n);
    // Mixes a head so that it keeps its length and loses its outliers; twice is nothing. n is a multiple of 16.
    void (*hadamard)(const float* x, float* out, int64_t n);
    void (*to_bfloat16)(const float* x, uint16_t* out, int64_t n);  // to nearest, ties to even
    void (*to_float16)(const float* x, uint16_t* out, int64_t n);   // likewise; saturates; NaN stays NaN
    // scale = absmax / 127, out = x / scale to nearest; the scale is not finite if any x is not.
    void (*to_int8)(const float* x, int8_t* out, float* scale, int64_t n);
    SamplingOps sampling;

    // Writes what the tile's rows get from positions [256 * partition, ...) to `out`. Slots that no token of the tile
    // sees are not read. `scratch` starts on a cache line.
    void (*attend_partition)(const AttentionTile& tile, int64_t partition, const NextPartition& next,
                             PartialSoftmax out, float* scratch);
    // total = total merged with part. Merging partitions in ascending order gives the same bits however they are split.
    void (*merge)(PartialSoftmax total, PartialSoftmax part, int64_t rows, int64_t head_dim);
    // Divides, and stores token t's heads at out + t * out_stride.
    void (*finish)(PartialSoftmax total, const AttentionTile& tile, float* out, int64_t out_stride);
};

extern const OpTable kPortableOps;
#if defined(__x86_64__)
extern const OpTable kAvx2Ops;
extern const OpTable kAvx512Ops;
extern const OpTable kAvx512Bf16Ops;
#elif defined(__aarch64__)
extern const OpTable kNeonOps;
#endif

// The table of active_isa().
const OpTable& ops();

}  // namespace pellucid
