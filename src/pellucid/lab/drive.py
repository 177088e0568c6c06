"""Requests through an engine in this process, as they arrive."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pellucid.engine.core import EngineCore
from pellucid.errors import PellucidError
from pellucid.messages import AddRequest, TokenDelta, TokenLogprobs, pack_tokens
from pellucid.sampling_params import SamplingParams


@dataclass(slots=True)
class Served:
    """What became of a request; seconds since the first one could arrive."""

    arrival: float
    scheduled: float = 0.0
    finished: float = 0.0
    num_cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.arrival

    @property
    def latency(self) -> float:
        return self.finished - self.arrival


def greedy(name: str, prompt: list[int], max_tokens: int) -> AddRequest:
    """A request for exactly `max_tokens` tokens, each the likeliest."""
    return AddRequest(
        request_id=name,
        prompt=pack_tokens(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
        arrival_time=0.0,
    )


def serve(
    core: EngineCore, requests: Sequence[AddRequest], arrivals: Sequence[float] | None = None
) -> dict[str, Served]:
    """Run all to their end.

    Args:
        arrivals: seconds from now at which each arrives, in order; all at once by default.

    Raises:
        PellucidError: the engine refused one.
    """
    begin = time.monotonic()
    coming = deque(zip(requests, arrivals or [0.0] * len(requests), strict=True))
    served = {}
    while coming or core.has_work:
        if coming and not core.has_work:
            time.sleep(max(0.0, begin + coming[0][1] - time.monotonic()))
        while coming and begin + coming[0][1] <= time.monotonic():
            request, arrival = coming.popleft()
            served[request.request_id] = Served(arrival)
            request.arrival_time = begin + arrival
            core.add(request)
        output = core.step()
        now = time.monotonic() - begin
        for delta in output.deltas:
            _note(served[delta.request_id], delta, now, begin)
    return served


def _note(one: Served, delta: TokenDelta, now: float, begin: float) -> None:
    if delta.error is not None:
        raise PellucidError(f"the engine refused a request: {delta.error}")
    if delta.token_ids and not one.token_ids:
        one.num_cached_tokens = delta.num_cached_tokens
        one.prompt_logprobs = delta.prompt_logprobs or []
        if delta.times is not None and delta.times.scheduled is not None:
            one.scheduled = delta.times.scheduled - begin
    one.token_ids += delta.token_ids
    one.token_times += [now] * len(delta.token_ids)
    if delta.finish_reason is not None:
        one.finished = now
