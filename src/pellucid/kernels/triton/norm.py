"""RMSNorm, alone or after adding the residual stream (Zhang and Sennrich 2019).

    total = residual + update                           rounded to the dtype of the model
    out   = total / sqrt(mean(total^2) + eps) * weight

One program has one row in registers, so that a row is read once and written once: apart, the sum
and the norm would move it twice more. For rows of n elements of b bytes:

    read    2 n b (update, residual) + 4 n (weight, which stays in the cache)
    written 2 n b (total, out)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS_PER_WARP = 512


@triton.jit
def add_rms_norm_kernel(
    update,  # [rows, heads, n], the last dimension dense
    residual,  # [rows, n] dense; not read without HAS_RESIDUAL
    weight,  # [n] float32
    out,  # [rows, heads, n] dense
    total,  # [rows, n] dense; not written without HAS_RESIDUAL
    row_stride,
    head_stride,
    heads,
    n,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,  # n, rounded up to a power of two
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n

    start = row // heads * row_stride + row % heads * head_stride
    x = tl.load(update + start + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        added = tl.load(residual + row * n + columns, mask=inside, other=0.0)
        x = (added.to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(total + row * n + columns, x, mask=inside)

    wide = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / n + eps)
    scaled = wide * inverse * tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(out + row * n + columns, scaled.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm of `x` [rows, n] or [rows, heads, n], over the last dimension, which is dense."""
    heads = x.shape[1] if x.dim() == 3 else 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, out, None, heads, eps)
    return out


def add_rms_norm(
    update: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The norm of `residual + update`, and that sum: all [rows, n]."""
    residual = residual.contiguous()
    out, total = torch.empty_like(residual), torch.empty_like(residual)
    _launch(update, residual, weight, out, total, 1, eps)
    return out, total


def _launch(
    update: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    out: Tensor,
    total: Tensor | None,
    heads: int,
    eps: float,
) -> None:
    n = update.shape[-1]
    if out.numel() == 0:
        return
    block = triton.next_power_of_2(n)
    add_rms_norm_kernel[(out.numel() // n,)](
        *(update, residual, weight, out, total),
        *(update.stride(0), update.stride(1) if update.dim() == 3 else 0, heads, n, eps),
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // ELEMENTS_PER_WARP)),
    )
