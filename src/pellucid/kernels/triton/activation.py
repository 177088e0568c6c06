"""The gated activations between the two products of an MLP (Shazeer 2020, "GLU variants").

    out = act(gate) * up        silu(g) = g / (1 + e^-g)
                                gelu(g) = g / 2 * (1 + erf(g / sqrt 2)), or by its tanh formula
                                          (Hendrycks and Gimpel 2016)

Gate and up are the two halves of each row. One program computes BLOCK elements of one row, so each
element is read once, in float32 from then on, and the product is written once: 2 reads and 1 write
per element, where torch would write the wide halves and the activation to memory as well.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SILU, GELU, GELU_TANH = range(3)
BLOCK = 1024

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)


@triton.jit
def tanh(x):
    # e^2x may overflow or vanish: the quotient is then 0 or 2. Near 0 the error is absolute, 1e-7.
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def gated_activation_kernel(
    gate_up,  # [rows, 2 * n], rows dense
    out,  # [rows, n] dense
    row_stride,
    n,
    KIND: tl.constexpr,  # 0 silu, 1 gelu, 2 gelu by tanh
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    start = gate_up + row * row_stride
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + n + columns, mask=inside, other=0.0).to(tl.float32)

    if KIND == 0:
        activated = gate / (1 + tl.exp(-gate))
    elif KIND == 1:
        activated = 0.5 * gate * (1 + tl.erf(gate * SQRT_HALF))
    else:
        inner = SQRT_2_OVER_PI * (gate + 0.044715 * gate * gate * gate)
        activated = 0.5 * gate * (1 + tanh(inner))
    tl.store(out + row * n + columns, (activated * up).to(out.dtype.element_ty), mask=inside)


def gated_activation(gate_up: Tensor, kind: int) -> Tensor:
    """`gate_up` [rows, 2 * n] -> [rows, n]; `kind` is SILU, GELU or GELU_TANH."""
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, n), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        gated_activation_kernel[(rows, triton.cdiv(n, BLOCK))](
            gate_up, out, gate_up.stride(0), n, KIND=kind, BLOCK=BLOCK
        )
    return out
