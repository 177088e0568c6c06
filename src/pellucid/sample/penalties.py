"""Penalties on tokens that a sequence already holds.

Each sequence keeps the list of its distinct tokens with their counts, updated one token at a time.
A step touches only those entries of the logits, which are fewer than the vocabulary however long
the sequence grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.transfer import to_device

_FIRST_CAPACITY = 256


class TokenCounts:
    """Distinct tokens of one sequence, and how often each was generated (0: prompt only)."""

    __slots__ = ("_generated", "_places", "_token_ids")

    def __init__(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        self._places: dict[int, int] = {}
        self._token_ids = np.zeros(_FIRST_CAPACITY, np.int64)
        self._generated = np.zeros(_FIRST_CAPACITY, np.float32)
        for token in prompt:
            self._place(token)
        for token in generated:
            self.add(token)

    def add(self, token: int) -> None:
        """Count one generated token."""
        place = self._place(token)
        self._generated[place] += 1.0

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._token_ids[: len(self._places)]

    @property
    def generated(self) -> NDArray[np.float32]:
        return self._generated[: len(self._places)]

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._token_ids):
            self._token_ids = np.pad(self._token_ids, (0, place))
            self._generated = np.pad(self._generated, (0, place))
        self._token_ids[place] = token
        return place


@dataclass(frozen=True, slots=True)
class Penalties:
    """One sequence's tokens and what is held against them; 1, 0 and 0 are no penalties."""

    counts: TokenCounts
    repetition: float
    frequency: float
    presence: float


def apply_penalties(logits: Tensor, rows: Sequence[int], penalties: Sequence[Penalties]) -> None:
    """Penalise, in place, the tokens that the given rows of logits [n, V] already hold.

    Repetition (Keskar et al. 2019, CTRL) comes first and counts every token of `counts`, prompt
    included: positive logits are divided by it, the others multiplied. Then frequency is subtracted
    once per time that a token was generated, and presence once if it was generated at all.
    """
    lengths = [len(p.counts.token_ids) for p in penalties]

    def spread(values: list[float]) -> Tensor:
        return _tensor(np.repeat(np.array(values, np.float32), lengths), logits)

    flat = np.repeat(np.asarray(rows, np.int64) * logits.shape[1], lengths)
    index = _tensor(flat + np.concatenate([p.counts.token_ids for p in penalties]), logits)
    generated = _tensor(np.concatenate([p.counts.generated for p in penalties]), logits)
    factor = spread([p.repetition for p in penalties])
    values = logits.view(-1)[index]
    values = torch.where(values > 0.0, values / factor, values * factor)
    values -= spread([p.frequency for p in penalties]) * generated
    values -= spread([p.presence for p in penalties]) * (generated > 0.0)
    logits.view(-1)[index] = values


def _tensor(values: NDArray[np.generic], like: Tensor) -> Tensor:
    return to_device(values, like.device)
