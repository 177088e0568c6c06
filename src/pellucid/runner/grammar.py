"""Grammars of the running requests: by row, as the rest of how a row samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.grammar.compiler import Bitmask, Matcher, bitmask_words
from pellucid.grammar.errors import CANNOT_FOLLOW, GrammarError
from pellucid.runner.base import NewRow
from pellucid.runner.batch import Ints
from pellucid.sample.backends import Sampler


class GrammarRows:
    """Matchers by row, and the memory for their masks. A step without grammars costs nothing."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._matchers: dict[int, Matcher] = {}
        self._masks: Bitmask = np.zeros((max_num_seqs, bitmask_words(vocab_size)), np.uint32)
        self._broken: dict[int, str] = {}  # rows that can no longer be followed, and why

    def add(self, row: int, new: NewRow) -> None:
        """Follow a row from where it stands: a request comes back from preemption midway."""
        if new.grammar is None:
            return
        try:
            self._matchers[row] = new.grammar.matcher(new.token_ids[new.num_prompt_tokens :])
        except GrammarError as error:
            self._broken[row] = str(error)

    def __bool__(self) -> bool:
        """Whether any row has one."""
        return bool(self._matchers or self._broken)

    def drop(self, row: int) -> None:
        """Forget a row; one that was never added is fine."""
        self._matchers.pop(row, None)
        self._broken.pop(row, None)

    def constrain(
        self, logits: Tensor | NDArray[np.float32], rows: Ints, sampler: Sampler[Any]
    ) -> None:
        """Forbid in logits [n, V] what each row's grammar does not allow next; -inf, in place."""
        if not self:
            return
        places: list[int] = []
        for place, row in enumerate(rows.tolist()):
            matcher = self._matchers.get(row)
            if matcher is not None:
                self._fill(row, matcher, self._masks[len(places)])
                places.append(place)
            if row in self._broken:  # nothing may come, so that the row fails
                logits[place] = -np.inf
        if places:
            sampler.forbid(logits, places, self._masks[: len(places)])

    def accept(self, rows: Ints, token_ids: Ints, failed: NDArray[np.bool_]) -> dict[int, str]:
        """Advance by the tokens that were chosen; says by place why a row cannot go on.

        Rows that `failed` have no token.
        """
        errors: dict[int, str] = {}
        if not self:
            return errors
        for place, (row, token) in enumerate(zip(rows.tolist(), token_ids.tolist(), strict=True)):
            if row in self._broken:
                errors[place] = f"{CANNOT_FOLLOW}: {self._broken[row]}"
            elif row in self._matchers and not failed[place]:
                try:
                    self._matchers[row].accept([token])
                except GrammarError as error:
                    errors[place] = f"{CANNOT_FOLLOW}: {error}"
        return errors

    def _fill(self, row: int, matcher: Matcher, mask: Bitmask) -> None:
        try:
            matcher.fill(mask)
        except GrammarError as error:
            self._broken[row] = str(error)
