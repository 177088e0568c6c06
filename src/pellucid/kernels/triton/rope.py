"""Rotary position embedding (Su et al. 2021) and the write into the paged KV pool, in one launch.

For a token at position p, and each pair (i, i + half) of components of a head of q or k:

    a' = a cos[p, i] - b sin[p, i]          half = rotated / 2; components from 2 * half on
    b' = b cos[p, i] + a sin[p, i]          pass unchanged

One program has one head of one token. Programs 0 .. H - 1 of a token rotate q; the next G rotate a
head of k and copy that of v, and store both at the token's slot: a slot is a row of the pool, block
* block_size + offset. Everything comes from memory once (a component's partner from the cache) and
goes there once. Apart, the rotated k would be written and read again, and v take its own launch.

An int8 pool has a scale per slot and head, absmax / 127, found while the head is in registers; what
is rounded is the head's Hadamard transform.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.kernels.triton.hadamard import hadamard, transform_size

# Adding and subtracting 1.5 * 2^23 rounds a float32 below 2^22 to the nearest integer, ties to
# even, as torch.round does.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def rotated_head(head, cos, sin, column, inside, half):
    """`cos` and `sin` point to the token's position."""
    pair = column % half
    is_first = column < half
    turns = column < 2 * half
    partner = tl.where(is_first, column + half, column - half)
    x = tl.load(head + column, mask=inside, other=0.0)
    other = tl.load(head + partner, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(cos + pair, mask=turns, other=1.0)
    s = tl.load(sin + pair, mask=turns, other=0.0)
    return (x.to(tl.float32) * c + other * tl.where(is_first, -s, s)).to(x.dtype)


@triton.jit
def store_head(
    x, pool, scales, place, head_dim, column, inside, INT8: tl.constexpr, BLOCK: tl.constexpr
):
    """Store a head at `place`, a row of the pool seen as [slots * G, D]."""
    target = pool + place * head_dim + column
    if INT8:
        wide = tl.reshape(x.to(tl.float32), [1, BLOCK])
        wide = tl.reshape(hadamard(wide, INT8, 1, BLOCK), [BLOCK])
        # The sum is 0, or NaN where a component is not finite: then so is the scale.
        largest = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-30) + tl.sum(wide * 0.0, axis=0)
        scale = tl.div_rn(largest, 127.0)
        rounded = (tl.div_rn(wide, scale) + ROUNDER) - ROUNDER
        tl.store(scales + place, scale)
        tl.store(target, tl.where(rounded == rounded, rounded, 0.0).to(tl.int8), mask=inside)
    else:
        tl.store(target, x.to(pool.dtype.element_ty), mask=inside)


@triton.jit
def rope_and_write_kv_kernel(
    q,  # [T, H, D], each token's heads dense
    k,  # [T, G, D], likewise
    v,  # [T, G, D], likewise
    cos,  # [max_position, half] float32
    sin,
    positions,  # [T] int64
    slot_mapping,  # [T] int64
    q_out,  # [T, H, D] dense
    k_pool,  # [slots, G, D]
    v_pool,
    k_scales,  # [slots, G] float32; not written without INT8
    v_scales,
    q_stride,  # between tokens
    k_stride,
    v_stride,
    num_heads,
    num_kv_heads,
    head_dim,
    half,
    INT8: tl.constexpr,  # components that are transformed together; 0 without an int8 pool
    BLOCK: tl.constexpr,  # head_dim, rounded up to a power of two
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < head_dim
    position = tl.load(positions + token)
    here_cos, here_sin = cos + position * half, sin + position * half

    if head < num_heads:
        source = q + token * q_stride + head * head_dim
        turned = rotated_head(source, here_cos, here_sin, column, inside, half)
        tl.store(q_out + (token * num_heads + head) * head_dim + column, turned, mask=inside)
    else:
        head -= num_heads
        place = tl.load(slot_mapping + token) * num_kv_heads + head
        source = k + token * k_stride + head * head_dim
        turned = rotated_head(source, here_cos, here_sin, column, inside, half)
        store_head(turned, k_pool, k_scales, place, head_dim, column, inside, INT8, BLOCK)
        value = tl.load(v + token * v_stride + head * head_dim + column, mask=inside, other=0.0)
        store_head(value, v_pool, v_scales, place, head_dim, column, inside, INT8, BLOCK)


def rope_and_write_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, inputs: AttentionInputs, kv: KVLayer
) -> Tensor:
    """See `ReferenceOps.rope_and_write_kv`."""
    tokens, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out
    q, k, v = _heads_dense(q), _heads_dense(k), _heads_dense(v)
    rope_and_write_kv_kernel[(tokens, heads + k.shape[1])](
        *(q, k, v, cos, sin, inputs.positions, inputs.slot_mapping, out),
        *(kv.k, kv.v, kv.k_scale, kv.v_scale),
        *(q.stride(0), k.stride(0), v.stride(0)),
        *(heads, k.shape[1], head_dim, cos.shape[1]),
        INT8=0 if kv.k_scale is None else transform_size(head_dim),
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=1,
    )
    return out


def _heads_dense(x: Tensor) -> Tensor:
    """`x` [T, heads, D], where each token's heads lie side by side."""
    dense = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if dense else x.contiguous()
