"""What a metrics collector is told. Times are seconds of `time.monotonic()`, or differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pellucid.messages import FinishReason, RequestTimes, StepStats
from pellucid.sampling_params import SamplingParams


@dataclass(slots=True)
class StepReport:
    """One engine step as the front end saw it.

    A request contributes to `times_to_first_token` once, and to `inter_token_latencies` with the
    gap before each later delta; a delta of several tokens is one gap.
    """

    stats: StepStats
    times_to_first_token: list[float] = field(default_factory=list)
    inter_token_latencies: list[float] = field(default_factory=list)


@dataclass(slots=True)
class RequestReport:
    """One answer that ended, however it ended; a request with `n` answers gives `n` of these."""

    request_id: str  # the engine's
    params: SamplingParams
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    finish_reason: FinishReason
    times: RequestTimes


class StatsListener(Protocol):
    """Called on the event loop: must be quick and must not block."""

    def on_step(self, report: StepReport) -> None: ...

    def on_finish(self, report: RequestReport) -> None: ...
