"""The device that tests of kernels, sampling, the runner and whole models run on.

The CPU, unless PELLUCID_TEST_DEVICE names another. On a GPU Triton's kernels are compiled and run
there, and whole models are computed by them, with float weights, too: cuBLAS does not promise the
bits that these tests compare.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch

DEVICE = torch.device(os.environ.get("PELLUCID_TEST_DEVICE") or "cpu")
# Ops that give a row the same bits in any company, with the type of the KV pool if it is named.
INVARIANT_KERNELS = ("triton",) if DEVICE.type == "cuda" else ("reference", "native")


@contextmanager
def on_device() -> Iterator[None]:
    """Tensors that are made within are on the device."""
    with torch.device(DEVICE):
        yield


@contextmanager
def float_weights_too() -> Iterator[None]:
    """Triton's ops that are made within multiply with float weights, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_TRITON_THRESHOLDS", "dense=1")
        yield


def where_torch_is_not_invariant() -> AbstractContextManager[None]:
    """`float_weights_too` on a GPU. On a CPU it is Triton's interpreter that is not."""
    return nullcontext() if DEVICE.type == "cpu" else float_weights_too()
