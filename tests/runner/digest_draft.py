"""A draft model without a model: it reads the text through its blocks, as `FakeRunner` does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pellucid.runner.base import KVCapacity
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.draft_model import DraftModel
from pellucid.runner.fake import _mix, _next_token
from pellucid.sample.backends import TorchSampler
from pellucid.spec.drafter import Wanted
from tests.spec.fixed_times import FixedTimes

VOCAB = 1000
ANSWERS = range(100, VOCAB)


def said_behind(digest: int, wrong_every: int) -> int:
    """What a FakeRunner says behind a text of this digest, but for some texts."""
    is_wrong = digest % wrong_every == 0
    return _next_token(digest, 0, range(100, 101) if is_wrong else ANSWERS)


class DigestExecutor:
    """Implements `Executor` and `Forward`: a slot holds the digest of the text that ends there."""

    def __init__(self, num_blocks: int, block_size: int, wrong_every: int) -> None:
        self.sampler = TorchSampler()
        self.positions = 0  # computed so far
        self._slots = [0] * (num_blocks * block_size)
        self._block_size = block_size
        self._wrong_every = wrong_every

    def launch(self, step: StepRows, wanted: Ints) -> DigestExecutor:
        self.positions += len(step.token_ids)
        digests = []
        ends = step.query_start.tolist()
        for row, (begin, end) in enumerate(pairwise(ends)):
            start, size = int(step.positions[begin]), self._block_size
            digest = 0
            if start:
                block, offset = divmod(start - 1, size)
                digest = self._slots[step.block_tables[row][block] * size + offset]
            for token, slot in zip(
                step.token_ids[begin:end].tolist(), step.slot_mapping[begin:end], strict=True
            ):
                digest = self._slots[slot] = _mix(digest, token)
                digests.append(digest)
        self._logits = torch.full((len(wanted), VOCAB), -100.0)
        for place, at in enumerate(wanted.tolist()):
            self._logits[place, said_behind(digests[at], self._wrong_every)] = 100.0
        return self

    def logits(self, begin: int, end: int) -> Tensor:
        return self._logits[begin:end]

    def hidden(self, step: StepRows, wanted: Ints) -> Tensor:
        raise NotImplementedError

    def remember(self, rows: Ints, token_ids: Tensor) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


class CheckedDraftModel(DraftModel):
    """Asserts that it says what one that computes every text from its beginning would say."""

    def __init__(
        self,
        capacity: KVCapacity,
        *,
        max_num_seqs: int,
        max_rows: int = 8,
        wrong_every: int = 3,
        max_model_len: int = 400,
    ) -> None:
        self.executor = DigestExecutor(capacity.num_blocks, capacity.block_size, wrong_every)
        super().__init__(
            self.executor,
            vocab_sizes=(VOCAB, VOCAB),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            block_size=capacity.block_size,
            max_rows=max_rows,
            times=FixedTimes({1: 1.0}, {1: 0.1}),
        )
        self.wrong_every = wrong_every
        self.num_guessed = self.num_idle = 0  # proposals with guesses, and without

    @property
    def present(self) -> set[str]:
        return {*self._texts, *self._acceptances}

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        proposed = super().propose(wanted)
        deepest = max(map(len, proposed))  # all are cut at the same depth
        for each, guesses in zip(wanted, proposed, strict=True):
            digest = 0
            for token in each.token_ids:
                digest = _mix(digest, token)
            for guess in guesses:
                assert guess == said_behind(digest, self.wrong_every)
                digest = _mix(digest, guess)
            assert len(guesses) in (0, min(each.count, deepest))
            self.num_guessed += bool(guesses)
            self.num_idle += not guesses
        return proposed
