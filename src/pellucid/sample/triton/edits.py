"""Changes to logits in place: biases, bans, and what a grammar or a list of tokens allows.

Biases and bans are sent when they change: most steps have those of the step before.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.bitmask import pack_allowed
from pellucid.sample.constraints import Constraints
from pellucid.sample.transfer import Kept, to_device

BLOCK = tl.constexpr(1024)


@triton.jit(do_not_specialize=["n"])
def bias_kernel(
    logits,
    places,  # [n] int32: rows of the logits
    ids,  # [n] int32
    values,  # [n] float32
    n,
    vocab,
):
    """Grid (blocks of n): add each value to its logit, which no other has."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    place = tl.load(places + index, mask=inside, other=0).to(tl.int64)
    logit = logits + place * vocab + tl.load(ids + index, mask=inside, other=0)
    x = tl.load(logit, mask=inside, other=0.0) + tl.load(values + index, mask=inside, other=0.0)
    tl.store(logit, x, mask=inside)


@triton.jit(do_not_specialize=["n"])
def ban_kernel(logits, places, ids, n, vocab):
    """Grid (blocks of n), as `bias_kernel`: -inf."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    place = tl.load(places + index, mask=inside, other=0).to(tl.int64)
    logit = logits + place * vocab + tl.load(ids + index, mask=inside, other=0)
    tl.store(logit, tl.full([BLOCK], float("-inf"), tl.float32), mask=inside)


@triton.jit
def forbid_kernel(
    logits,
    masks,  # [n, words] int32: bit i % 32 of word i // 32 is set if token i is allowed
    rows,  # [n] int32: of the logits
    words,
    vocab,
):
    """Grid (n, blocks of the vocabulary): -inf wherever the bit is not set."""
    index = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(masks + index.to(tl.int64) * words + token // 32, mask=token < vocab, other=0)
    forbidden = ((word >> (token % 32)) & 1) == 0
    logit = logits + tl.load(rows + index).to(tl.int64) * vocab + token
    minus_infinity = tl.full([BLOCK], float("-inf"), tl.float32)
    tl.store(logit, minus_infinity, mask=(token < vocab) & forbidden)


class Edits:
    """What is known of the rows' biases and bans on the device. See `Sampler` for the methods."""

    def __init__(self) -> None:
        self._biases, self._bans, self._allowed = Kept(), Kept(), Kept()

    def bias(
        self, logits: Tensor, places: Sequence[int], constraints: Sequence[Constraints]
    ) -> None:
        biased = [(p, c) for p, c in zip(places, constraints, strict=True) if len(c.biased)]
        if not biased:
            return
        sent = self._biases.tensors(
            biased,
            logits.device,
            lambda: [
                _repeated([(place, len(each.biased)) for place, each in biased]),
                np.concatenate([each.biased for _, each in biased]).astype(np.int32),
                np.concatenate([each.bias for _, each in biased]),
            ],
        )
        n = len(sent[0])
        bias_kernel[(triton.cdiv(n, BLOCK.value),)](checked(logits), *sent, n, logits.shape[1])

    def ban(
        self,
        logits: Tensor,
        places: Sequence[int],
        constraints: Sequence[Constraints],
        banned: Sequence[Sequence[int]],
    ) -> None:
        vocab = logits.shape[1]
        lists = [(p, c) for p, c in zip(places, constraints, strict=True) if c.allowed is not None]
        if lists:
            masks, rows = self._allowed.tensors(
                lists,
                logits.device,
                lambda: [
                    pack_allowed([c.allowed for _, c in lists if c.allowed is not None], vocab),
                    np.array([place for place, _ in lists], np.int32),
                ],
            )
            _forbid(logits, masks, rows)
        bans = tuple((p, tuple(ids)) for p, ids in zip(places, banned, strict=True) if ids)
        if bans:
            sent = self._bans.tensors(
                bans,
                logits.device,
                lambda: [
                    _repeated([(place, len(ids)) for place, ids in bans]),
                    np.concatenate([ids for _, ids in bans]).astype(np.int32),
                ],
            )
            n = len(sent[0])
            ban_kernel[(triton.cdiv(n, BLOCK.value),)](checked(logits), *sent, n, vocab)

    def forbid(self, logits: Tensor, places: Sequence[int], masks: NDArray[np.uint32]) -> None:
        if len(places):
            device = logits.device
            rows = to_device(np.asarray(places, np.int32), device)
            words = np.ascontiguousarray(masks).view(np.int32)
            _forbid(logits, to_device(words, device), rows)


def checked(logits: Tensor) -> Tensor:
    """`logits`.

    Raises:
        ValueError: they are not dense float32 [n, V].
    """
    if logits.dtype != torch.float32 or logits.dim() != 2 or not logits.is_contiguous():
        kind = f"{logits.dtype} {list(logits.shape)}"
        raise ValueError(f"logits must be dense float32 [n, V], not {kind}")
    return logits


def _repeated(places: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Each place as often as it says."""
    return np.repeat(*np.array(places, np.int32).T)


def _forbid(logits: Tensor, masks: Tensor, rows: Tensor) -> None:
    vocab = logits.shape[1]
    forbid_kernel[(len(rows), triton.cdiv(vocab, BLOCK.value))](
        checked(logits), masks, rows, masks.shape[1], vocab
    )
