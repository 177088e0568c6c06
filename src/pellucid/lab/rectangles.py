"""Steps filled up to rectangles, on the kernels and under the scheduler that have no need of it.

A server without flat steps computes a batch as [requests, tokens], as wide as its longest member:
where one request brings a prompt of 40 tokens and three decode, 160 positions are computed, and 117
of them are padding.

    request  [ prompt ......................... ]
    request  [ token | pad .................... ]
    request  [ token | pad .................... ]
"""

from __future__ import annotations

import dataclasses

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.core import EngineCore
from pellucid.lab.subject import Subject
from pellucid.runner.base import (
    Chunk,
    KVCapacity,
    NewRow,
    PendingStep,
    Runner,
    StepPlan,
    StepResult,
)
from pellucid.sampling_params import SamplingParams

BLOCK_SIZE = 16
PAD = 0


class Rectangles:
    """A runner that pads the steps of another while `padded`. Implements `Runner`.

    Each seat has a second row, of padding alone, with blocks of its own. What is filled up in a
    request's row of the rectangle is computed there, at the positions behind the request's text:
    as many products and as long an attention as if it stood in the same row, and no bit of the
    text can change. The attention of a real token reads its own text only, padded or not.

    Args:
        inner: with room for twice the seats, and for contexts of `longest` plus `widest` tokens.
        longest: context of any request.
        widest: chunk of any request.

    Attributes:
        positions: computed so far, padding included.
    """

    drafter = None

    def __init__(self, inner: Runner, seats: int, longest: int, widest: int) -> None:
        self._inner = inner
        self.info, self.close = inner.info, inner.close
        self.padded = False
        self.positions = 0
        self._seats, self._length = seats, longest + widest
        self._row_blocks = -(-self._length // BLOCK_SIZE)
        self._capacity = inner.kv_capacity()
        self._made: set[int] = set()  # seats whose row of padding the inner runner has
        self._pending: PendingStep | None = None
        self._num_chunks = 0

    def kv_capacity(self) -> KVCapacity:
        """What is left to requests: the last blocks are those of the padding."""
        mine = self._seats * self._row_blocks
        return dataclasses.replace(self._capacity, num_blocks=self._capacity.num_blocks - mine)

    def execute(self, plan: StepPlan) -> PendingStep:
        self._num_chunks = len(plan.chunks)
        if self.padded:
            plan = self._rectangle(plan)
        self.positions += plan.num_tokens
        self._pending = self._inner.execute(plan)
        return self

    def result(self) -> StepResult:
        """Of the requests; padding, which stands behind them, samples nothing."""
        assert self._pending is not None
        result, count = self._pending.result(), self._num_chunks
        return dataclasses.replace(
            result,
            token_ids=result.token_ids[:count],
            logprobs=result.logprobs[:count],
            prompt_logprobs=result.prompt_logprobs[:count],
        )

    def _rectangle(self, plan: StepPlan) -> StepPlan:
        width = max((chunk.num_tokens for chunk in plan.chunks), default=0)
        rows, chunks = list(plan.new_rows), list(plan.chunks)
        for seat, chunk in enumerate(plan.chunks):
            missing = width - chunk.num_tokens
            if missing == 0:
                continue
            name, blocks = f"padding {seat}", list[int]()
            if seat not in self._made:
                self._made.add(seat)
                rows.append(NewRow(name, [PAD] * self._length, self._length, SamplingParams()))
                first = self._capacity.num_blocks - (seat + 1) * self._row_blocks
                blocks = list(range(first, first + self._row_blocks))
            chunks.append(Chunk(name, chunk.start + chunk.num_tokens, missing, False, blocks))
        return dataclasses.replace(plan, new_rows=rows, chunks=chunks)


def open_engine(
    subject: Subject, seats: int, longest: int, widest: int
) -> tuple[EngineCore, Rectangles]:
    """An engine without prefix cache whose steps can be padded, and what pads them.

    A step holds the whole prompts of all seats, so that none is cut.

    Args: see `Rectangles`; the caller closes that.
    """
    length = longest + widest
    whole = max(seats * widest, 2 * seats)
    inner = subject.engine(
        max_num_seqs=2 * seats,
        max_model_len=length,
        max_num_batched_tokens=whole,
        block_size=BLOCK_SIZE,
        num_kv_blocks=2 * seats * -(-length // BLOCK_SIZE),
        prefix_caching=False,
    ).runner
    runner = Rectangles(inner, seats, longest, widest)
    limits = SchedulerSettings(
        max_num_seqs=seats, max_num_batched_tokens=whole, max_chunk_tokens=widest
    )
    return EngineCore(runner, CacheSettings(prefix_caching=False), limits), runner
