"""An open request, between the engine that writes it and the caller that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pellucid.errors import EngineDead
from pellucid.frontend.inputs import PreparedRequest
from pellucid.frontend.outputs import Completion, Delta, RequestOutput


class Generation:
    """One request's answers: an async iterator of deltas, those of `n` answers interleaved.

    The reader sets its own pace. What it has not fetched is merged into one delta per answer, so a
    slow reader costs bounded memory and never holds the engine up. Read it to the end or `aclose`
    it; a reader that is cancelled while it waits aborts the request.

    >>> async for delta in await llm.submit("Once upon a time", SamplingParams()):
    ...     print(delta.text, end="")
    """

    def __init__(self, request: PreparedRequest, abort: Callable[[Generation], object]) -> None:
        self.request = request
        self._abort = abort
        self._pending: dict[int, Delta] = {}  # by answer, oldest first
        self._num_open = len(request.sequences)  # answers whose last delta was not yet read
        self._death: EngineDead | None = None
        self.retries_left = 0  # engines that may still die with it before its first token
        self._wake = asyncio.Event()

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.request.prompt_token_ids

    # ---- the engine's side

    def put(self, delta: Delta) -> None:
        if self._death is not None:  # which the reader is told instead
            return
        waiting = self._pending.get(delta.index)
        if waiting is None:
            self._pending[delta.index] = delta
        else:
            merge(waiting, delta)
        self._wake.set()

    def fail(self, death: EngineDead) -> None:
        """The engine is gone: the reader gets what was produced, then `death`."""
        self._death = death
        self._wake.set()

    # ---- the reader's side

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. Raises EngineDead if the engine died before the last one."""
        while not self._pending:
            if self._num_open == 0:
                raise StopAsyncIteration
            if self._death is not None:
                raise type(self._death)(self._death.message, retry_after=self._death.retry_after)
            self._wake.clear()
            try:
                await self._wake.wait()
            except asyncio.CancelledError:
                self._close()
                raise
        delta = self._pending.pop(next(iter(self._pending)))
        if delta.finish_reason is not None:
            self._num_open -= 1
        return delta

    async def aclose(self) -> None:
        """Stop reading; what is unfinished is aborted at once. Idempotent."""
        self._close()

    async def result(self) -> RequestOutput:
        """Read to the end and return the finished request. Raises EngineDead."""
        answers: dict[int, Delta] = {}
        async for delta in self:
            if delta.index in answers:
                merge(answers[delta.index], delta)
            else:
                answers[delta.index] = delta
        first = answers[0]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.request.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[_completion(answers[index]) for index in sorted(answers)],
            num_cached_tokens=first.num_cached_tokens,
            prompt_logprobs=first.prompt_logprobs,
        )

    def _close(self) -> None:
        if self._num_open:
            self._abort(self)
            self._num_open = 0
        self._pending.clear()


def merge(into: Delta, later: Delta) -> None:
    """Append `later` to `into`, a delta of the same answer."""
    into.text += later.text
    # A new list: an engine in this process may still hold the one in `into`.
    into.token_ids = into.token_ids + later.token_ids
    if later.logprobs is not None:
        into.logprobs = (into.logprobs or []) + later.logprobs
    if into.prompt_logprobs is None:
        into.prompt_logprobs = later.prompt_logprobs
    into.finish_reason = later.finish_reason
    into.stop_reason = later.stop_reason
    into.times = later.times
    into.num_cached_tokens = later.num_cached_tokens
    into.error = later.error
    into.embedding = later.embedding


def _completion(answer: Delta) -> Completion:
    assert answer.finish_reason is not None  # the iteration ends only after every last delta
    return Completion(
        index=answer.index,
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        stop_reason=answer.stop_reason,
        logprobs=answer.logprobs,
        times=answer.times,
        error=answer.error,
        embedding=answer.embedding,
    )
