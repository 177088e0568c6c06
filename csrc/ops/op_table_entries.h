// The initialiser of an OpTable. Included by one unit per instruction set, after its simd header.

#pragma once

#include "attention.h"
#include "elementwise.h"
#include "hadamard.h"
#include "norm.h"
#include "rope.h"
#include "sampling.h"

#define PELLUCID_OP_TABLE                                                                             \
    {add_row,      scale_row,         rms_norm_row,   layer_norm_row,         silu_mul_row,          \
     gelu_mul_row, gelu_tanh_mul_row, gelu_row,       gelu_tanh_row,          softcap_row,           \
     rotate_head,  hadamard_head,     to_bfloat16_row, to_float16_row, to_int8_row, PELLUCID_SAMPLING_OPS,        \
     attend_partition_impl, merge_impl, finish_impl}
