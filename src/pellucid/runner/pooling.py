"""Requests that end with a vector: what is made of the final hidden states of their prompts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.messages import Pooling
from pellucid.runner.base import Chunk, PendingStep, StepPlan, StepResult
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.device import Fetched


@dataclass(slots=True)
class _Pool:
    kind: Pooling
    num_tokens: int  # of the prompt
    total: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    count: int = 0  # of the states in `total`

    def is_ended_by(self, chunk: Chunk) -> bool:
        return chunk.start + chunk.num_tokens == self.num_tokens

    def num_wanted(self, chunk: Chunk) -> int:
        """How many of the chunk's states are needed, which are the last ones."""
        return chunk.num_tokens if self.kind == "mean" else int(self.is_ended_by(chunk))

    def add(self, states: NDArray[np.float32]) -> None:
        # One position after the other: the sum does not depend on where chunks were cut.
        for state in states:
            self.total = self.total + state
        self.count += len(states)


class Pools:
    """The vectors in the making, by request."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}

    def __len__(self) -> int:
        return len(self._pools)

    def add(self, request_id: str, kind: Pooling, num_tokens: int) -> None:
        self._pools[request_id] = _Pool(kind, num_tokens)

    def drop(self, request_id: str) -> None:
        """Forget a request; one that does not pool is fine."""
        self._pools.pop(request_id, None)

    def split(self, plan: StepPlan) -> tuple[list[Chunk], StepPlan]:
        """The chunks that pool, and the plan without them."""
        pooling = [chunk for chunk in plan.chunks if chunk.request_id in self._pools]
        others = [chunk for chunk in plan.chunks if chunk.request_id not in self._pools]
        return pooling, replace(plan, chunks=others)

    def wanted(self, chunks: list[Chunk], step: StepRows) -> Ints:
        """The rows of `step`, which consists of `chunks`, whose states `take` needs."""
        ends = step.query_start[1:].tolist()
        counts = [self._pools[chunk.request_id].num_wanted(chunk) for chunk in chunks]
        rows = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return np.concatenate(rows, dtype=np.int64)

    def of(self, chunk: Chunk) -> _Pool:
        """What the chunk's request has come to."""
        return self._pools[chunk.request_id]


class Drawable(PendingStep, Protocol):
    """A step whose tokens may be drawn before its result is asked for."""

    def draw(self) -> None: ...


class PoolingStep:
    """A step of which some chunks pool, and the rest of it. Implements `PendingStep`.

    Its states are on their way to the host from the beginning, and are waited for with the result:
    the pools are those of the requests that were there then, whoever has left since.
    """

    def __init__(
        self, plan: StepPlan, pools: Pools, chunks: list[Chunk], states: Tensor, rest: Drawable
    ) -> None:
        self._plan = plan
        self._pooled = [(chunk, pools.of(chunk)) for chunk in chunks]
        self._states = Fetched([states.float()])
        self._rest = rest

    def draw(self) -> None:
        """Draw the tokens of the rest, if that has not been done."""
        self._rest.draw()

    def result(self) -> StepResult:
        count = len(self._plan.chunks)
        result = StepResult([[] for _ in range(count)], [None] * count, [None] * count)
        self.draw()
        self._take_states(result)
        rest = self._rest.result()  # which says how long all of it took
        result.forward_seconds, result.sample_seconds = rest.forward_seconds, rest.sample_seconds
        result.errors |= rest.errors
        pooled = {chunk.request_id for chunk, _ in self._pooled}
        places = (i for i, c in enumerate(self._plan.chunks) if c.request_id not in pooled)
        for index, place in enumerate(places):
            result.token_ids[place] = rest.token_ids[index]
            result.logprobs[place] = rest.logprobs[index]
            result.prompt_logprobs[place] = rest.prompt_logprobs[index]
        return result

    def _take_states(self, result: StepResult) -> None:
        """Add the states to their pools; vectors that are whole go into `result`."""
        (rows,) = self._states.wait()
        for chunk, pool in self._pooled:
            count = pool.num_wanted(chunk)
            pool.add(rows[:count])
            rows = rows[count:]
            if pool.is_ended_by(chunk):
                vector = pool.total / np.float32(pool.count)
                if np.isfinite(vector).all():
                    result.embeddings[chunk.request_id] = vector.astype("<f4").tobytes()
                else:
                    result.errors[chunk.request_id] = "the model's hidden states are not finite"
