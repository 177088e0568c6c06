"""Grammars of the running requests: by row, as the rest of how a row samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.grammar.compiler import Bitmask, Matcher, bitmask_words
from pellucid.grammar.errors import CANNOT_FOLLOW, GrammarError
from pellucid.runner.base import NewRow
from pellucid.runner.batch import Ints, entries_of
from pellucid.sample.backends import Sampler


class Followed:
    """An answer, as far as it has come, in its grammar."""

    def __init__(self, new: NewRow) -> None:
        assert new.grammar is not None
        self.broken: str | None = None  # why it can no longer be followed
        self._matcher: Matcher | None = None
        try:
            # A request comes back from preemption midway.
            self._matcher = new.grammar.matcher(new.token_ids[new.num_prompt_tokens :])
        except GrammarError as error:
            self._break(error)

    def fill(self, mask: Bitmask) -> None:
        """Write what may come next; that is nothing meaningful once this is broken."""
        if self._matcher is not None:
            try:
                self._matcher.fill(mask)
            except GrammarError as error:
                self._break(error)

    def accept(self, token_id: int) -> None:
        if self._matcher is not None:
            try:
                self._matcher.accept([token_id])
            except GrammarError as error:
                self._break(error)

    def _break(self, error: GrammarError) -> None:
        self._matcher, self.broken = None, f"{CANNOT_FOLLOW}: {error}"


class GrammarRows:
    """Answers by row, and the memory for their masks. A step without grammars costs nothing."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._rows: dict[int, Followed] = {}
        self._masks: Bitmask = np.zeros((max_num_seqs, bitmask_words(vocab_size)), np.uint32)

    def add(self, row: int, new: NewRow) -> None:
        """Follow a row from where it stands, if it has a grammar."""
        if new.grammar is not None:
            self._rows[row] = Followed(new)

    def __bool__(self) -> bool:
        """Whether any row has one."""
        return bool(self._rows)

    def drop(self, row: int) -> None:
        """Forget a row; one that was never added is fine."""
        self._rows.pop(row, None)

    def of(self, rows: Ints) -> list[tuple[int, Followed]]:
        """(place, answer) of the rows that have a grammar."""
        return entries_of(self._rows, rows)

    def constrain(
        self, logits: Tensor | NDArray[np.float32], rows: Ints, sampler: Sampler[Any]
    ) -> None:
        """Forbid in logits [n, V] what each row's grammar does not allow next; -inf, in place."""
        places: list[int] = []
        for place, followed in self.of(rows):
            followed.fill(self._masks[len(places)])
            if followed.broken is None:
                places.append(place)
            else:  # nothing may come, so that the row fails
                logits[place] = -np.inf
        if places:
            sampler.forbid(logits, places, self._masks[: len(places)])
