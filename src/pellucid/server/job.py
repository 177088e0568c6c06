"""One HTTP request on its way through the engine: all answers to all its prompts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from pellucid.errors import BadRequest, PellucidError, RequestTimeout
from pellucid.frontend.generation import merge
from pellucid.frontend.inputs import PreparedRequest
from pellucid.frontend.outputs import Delta
from pellucid.grammar.errors import CANNOT_FOLLOW
from pellucid.sampling_params import NOTHING_LEFT, SamplingParams
from pellucid.server.responses import CompletionTokensDetails, PromptTokensDetails, Usage


class Answers(Protocol):
    """One prompt's answers on their way: a `Generation`, or what reads like one."""

    @property
    def request(self) -> PreparedRequest: ...
    @property
    def request_id(self) -> str: ...
    @property
    def prompt_token_ids(self) -> list[int]: ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...
    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Job:
    """Generations opened for one request; a choice's index is `prompt * n + answer`.

    Whoever opens a job closes it, whatever happens: that is what frees the engine of a client that
    is gone.
    """

    id: str  # the client's: on the answer and on all chunks
    params: SamplingParams
    generations: Sequence[Answers]
    scores_only: bool = False  # see `params.scores_only`
    form_field: str = "structured_outputs"  # what an error about the answer's form names
    on_close: Callable[[Job], None] | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """What the engine produces, as it comes, with `index` the choice's. To be `aclose`d.

        Raises:
            EngineDead: the engine died.
            RequestTimeout: the deadline passed.
            BadRequest: what the request asks of an answer turned out to be impossible.
            PellucidError: the engine could not finish an answer.
        """
        if len(self.generations) == 1:
            async for delta in self.generations[0]:
                yield self._checked(delta)
            return
        async with aclosing(_interleave(self.generations)) as arriving:
            async for position, delta in arriving:
                delta.index += position * self.params.n
                yield self._checked(delta)

    async def collect(self) -> list[Delta]:
        """All answers, each whole, ordered by their choice's index. Raises as `deltas` does."""
        answers: dict[int, Delta] = {}
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                if delta.index in answers:
                    merge(answers[delta.index], delta)
                else:
                    answers[delta.index] = delta
        return [answers[index] for index in sorted(answers)]

    async def aclose(self) -> None:
        """Abort what is unfinished. Idempotent."""
        for generation in self.generations:
            await generation.aclose()
        if self.on_close is not None:
            self.on_close(self)
            self.on_close = None

    def prompt_of(self, index: int) -> Answers:
        """The generation that choice `index` belongs to."""
        return self.generations[index // self.params.n]

    def _failure(self, error: str) -> PellucidError:
        field, code = self.form_field, "unsupported_grammar"
        if error == NOTHING_LEFT:
            field = "min_tokens" if self.params.allowed_token_ids is None else "allowed_token_ids"
            code = "invalid_value"
        elif not error.startswith(CANNOT_FOLLOW):
            return PellucidError(error)
        return BadRequest(f"{field}: {error}", param=field, code=code)

    def _checked(self, delta: Delta) -> Delta:
        if delta.finish_reason == "timeout":
            raise RequestTimeout("The request timed out.", param="timeout", code="timeout")
        if delta.finish_reason == "error":
            raise self._failure(delta.error or "The engine could not finish the answer.")
        if self.scores_only:
            delta.text, delta.token_ids = "", []
            delta.logprobs = None if delta.logprobs is None else []
            delta.finish_reason, delta.stop_reason = "length", None
        return delta


class Tally:
    """Counts a job's tokens for `usage`."""

    def __init__(self, job: Job) -> None:
        self._n = job.params.n
        self._prompt = sum(len(g.prompt_token_ids) for g in job.generations)
        self._completion = 0
        self._cached = [0] * len(job.generations)
        self._reasoning: dict[int, int] = {}  # by choice

    def add(self, delta: Delta, reasoning_tokens: int | None = None) -> None:
        """`reasoning_tokens` are those of the whole choice so far; None where they are not told."""
        self._completion += len(delta.token_ids)
        prompt, answer = divmod(delta.index, self._n)
        if answer == 0:  # later answers to a prompt share the blocks of the first
            self._cached[prompt] = delta.num_cached_tokens
        if reasoning_tokens is not None:
            self._reasoning[delta.index] = reasoning_tokens

    def usage(self) -> Usage:
        usage = Usage(
            self._prompt,
            self._completion,
            self._prompt + self._completion,
            PromptTokensDetails(sum(self._cached)),
        )
        if self._reasoning:
            details = CompletionTokensDetails(sum(self._reasoning.values()))
            usage.completion_tokens_details = details
        return usage


async def _interleave(
    generations: Sequence[Answers],
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of several generations in the order of their arrival, with whose they are."""
    # Bounded, so that a slow reader's deltas are merged in their generations and not piled up here.
    arrived: asyncio.Queue[tuple[int, Delta | Exception | None]]
    arrived = asyncio.Queue(maxsize=len(generations))

    async def pump(position: int) -> None:
        try:
            async for delta in generations[position]:
                await arrived.put((position, delta))
        except Exception as error:
            await arrived.put((position, error))
        else:
            await arrived.put((position, None))

    pumps = [asyncio.create_task(pump(position)) for position in range(len(generations))]
    num_open = len(pumps)
    try:
        while num_open:
            position, delta = await arrived.get()
            if isinstance(delta, Exception):
                raise delta
            if delta is None:
                num_open -= 1
            else:
                yield position, delta
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
