"""What kernels multiply in."""

import torch
import triton.language as tl

from pellucid.kernels.triton import interpreted

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def product_dtype(activations: torch.dtype) -> tl.dtype:
    """The dtype of both operands of `tl.dot`: that of the activations.

    Except that the interpreter would multiply the bits of bfloat16 as integers (Triton 3.6 to 3.9).
    """
    if activations == torch.bfloat16 and interpreted():
        return tl.float32
    return _DTYPES[activations]
