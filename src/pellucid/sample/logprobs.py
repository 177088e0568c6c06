"""Log probabilities as the model gave them: of the raw logits, before any processing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.groups import largest


@dataclass(slots=True)
class Logprobs:
    """One entry per row."""

    chosen: NDArray[np.float32]  # [n] of the token that was chosen
    rank: NDArray[np.int64]  # [n] 1 + number of tokens strictly likelier
    top_ids: NDArray[np.int64]  # [n, k] best first, the lower id first among equals
    top: NDArray[np.float32]  # [n, k]


def compute_logprobs(logits: Tensor, token_ids: NDArray[np.int64], num_top: int) -> Logprobs:
    """log_softmax of float32 logits [n, V] at the chosen tokens [n] and at the `num_top` best."""
    chosen_ids = torch.from_numpy(token_ids).to(logits.device)[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, chosen_ids)
    likelier = torch.gt(logits, logits.gather(1, chosen_ids), out=torch.empty_like(logits))
    rank = 1 + likelier.sum(-1).long()  # exact: a vocabulary is smaller than 2^24
    top_ids = largest(logits, min(num_top, logits.shape[1]))
    top = logprobs.gather(1, top_ids)
    return Logprobs(
        chosen[:, 0].cpu().numpy(),
        rank.cpu().numpy(),
        top_ids.cpu().numpy(),
        top.cpu().numpy(),
    )
