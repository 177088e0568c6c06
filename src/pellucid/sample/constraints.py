"""Logits that a request forbids or shifts: rare, so a plain loop over the rows that have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.transfer import to_device


class Constraints:
    """What one request rules out, prepared once.

    Args:
        logit_bias: added to the logits of these tokens.
        allowed_token_ids: every other token is banned; None allows all.
        bad_words: token sequences that must not occur: once all but the last token of one stand at
            the end of the sequence, prompt included, its last token is banned.
        end_token_ids: tokens that would end the answer, banned while it is shorter than
            `min_tokens`.
    """

    __slots__ = ("_bad_words", "_end_token_ids", "_min_tokens", "allowed", "bias", "biased")

    def __init__(
        self,
        *,
        logit_bias: Mapping[int, float] | None = None,
        allowed_token_ids: Sequence[int] | None = None,
        bad_words: Sequence[Sequence[int]] = (),
        end_token_ids: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        logit_bias = logit_bias or {}
        self.biased = np.fromiter(logit_bias.keys(), np.int64, len(logit_bias))
        self.bias = np.fromiter(logit_bias.values(), np.float32, len(logit_bias))
        self.allowed: NDArray[np.int64] | None = None
        if allowed_token_ids is not None:
            self.allowed = np.unique(np.asarray(allowed_token_ids, np.int64))
        self._end_token_ids = list(end_token_ids)
        self._min_tokens = min_tokens
        # By the token that must have come right before; None: banned from the start.
        self._bad_words: dict[int | None, list[list[int]]] = {}
        for word in bad_words:
            if word:
                before = word[-2] if len(word) > 1 else None
                self._bad_words.setdefault(before, []).append(list(word))

    def __bool__(self) -> bool:
        return bool(
            len(self.biased)
            or self.allowed is not None
            or self._bad_words
            or (self._end_token_ids and self._min_tokens)
        )

    def banned(self, token_ids: NDArray[np.int32], num_generated: int) -> list[int]:
        """Tokens that must not come next, after the whole sequence `token_ids`."""
        banned = list(self._end_token_ids) if num_generated < self._min_tokens else []
        banned += [word[-1] for word in self._bad_words.get(None, ())]
        if len(token_ids):
            for word in self._bad_words.get(int(token_ids[-1]), ()):
                prefix = word[:-1]
                if token_ids[-len(prefix) :].tolist() == prefix:
                    banned.append(word[-1])
        return banned


def apply_bias(logits: Any, row: int, constraints: Constraints) -> None:
    """Add the request's logit_bias to its row of logits [n, V], tensor or array, in place."""
    if len(constraints.biased):
        logits[row, _like(constraints.biased, logits)] += _like(constraints.bias, logits)


def apply_bans(logits: Any, row: int, constraints: Constraints, banned: Sequence[int]) -> None:
    """Leave the request's row of logits [n, V] what it allows and is not `banned` now, in place.

    All else becomes -inf.
    """
    if constraints.allowed is not None:
        allowed = _like(constraints.allowed, logits)
        kept = logits[row, allowed]
        logits[row] = -np.inf
        logits[row, allowed] = kept
    if banned:
        logits[row, _like(np.array(banned), logits)] = -np.inf


def _like(values: NDArray[Any], logits: Any) -> Any:
    """What can index the logits, or be added to them."""
    return to_device(values, logits.device) if isinstance(logits, Tensor) else values
