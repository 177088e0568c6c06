"""Log probabilities as the model gave them: of the raw logits, before any processing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.groups import largest
from pellucid.sample.transfer import to_device


@dataclass(slots=True)
class Logprobs:
    """One entry per row."""

    chosen: NDArray[np.float32]  # [n] of the token that was chosen
    rank: NDArray[np.int64]  # [n] 1 + number of tokens strictly likelier
    top_ids: NDArray[np.int64]  # [n, k] best first, the lower id first among equals
    top: NDArray[np.float32]  # [n, k]


@dataclass(frozen=True, slots=True)
class Described:
    """Log probabilities on a device, perhaps still computed; the chosen token's come first."""

    ids: Tensor  # [n, 1 + k] int64
    logprobs: Tensor  # [n, 1 + k] float32
    ranks: Tensor  # [n] int64

    def tensors(self) -> list[Tensor]:
        """What is to be fetched for `fetched`."""
        return [self.ids, self.logprobs, self.ranks]

    def read(self) -> Logprobs:
        """Wait for them, and copy them to the host."""
        return fetched(*(tensor.cpu().numpy() for tensor in self.tensors()))


def fetched(
    ids: NDArray[np.int64], logprobs: NDArray[np.float32], ranks: NDArray[np.int64]
) -> Logprobs:
    """`Described` that has come to the host."""
    return Logprobs(logprobs[:, 0], ranks, ids[:, 1:], logprobs[:, 1:])


def describe(logits: Tensor, token_ids: Tensor, num_top: int) -> Described:
    """log_softmax of float32 logits [n, V] at the chosen tokens [n] and at the `num_top` best.

    All of it on the device of both, where the host need not wait for it.
    """
    chosen = token_ids[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)
    likelier = torch.gt(logits, logits.gather(1, chosen), out=torch.empty_like(logits))
    ranks = 1 + likelier.sum(-1).long()  # exact: a vocabulary is smaller than 2^24
    ids = torch.cat((chosen, largest(logits, min(num_top, logits.shape[1]))), dim=1)
    return Described(ids, logprobs.gather(1, ids), ranks)


def compute_logprobs(logits: Tensor, token_ids: NDArray[np.int64], num_top: int) -> Logprobs:
    """See `describe`."""
    return describe(logits, to_device(token_ids, logits.device), num_top).read()
