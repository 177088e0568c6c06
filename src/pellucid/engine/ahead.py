"""The engine's other loop: a step is planned and launched while the one before it still runs.

    plain    plan 1 | run 1       | account 1 | plan 2 | run 2       | account 2
    ahead    plan 1 | run 1 ......................| run 2 ......................| run 3
                    | plan 2 | launch 2 | account 1   | plan 3 | launch 3 | account 2

Step 2 computes the token that step 1 draws, which only the device knows when step 2 is launched:
for the scheduler it is expected, for the runner it is a placeholder that the device replaces. What
step 1's tokens then say may undo a share of step 2: of a request that came to its end, the one
token too many is ignored, and the K/V written for it lies in a block that is free again. Whoever
gets that block writes to it later, as the device does one step after the other.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import dataclass, replace

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.core import EngineCore
from pellucid.engine.scheduler import Counters
from pellucid.errors import ConfigError
from pellucid.messages import Command, Observe, StepOutput, TokenDelta
from pellucid.runner.base import PendingStep, Runner, StepPlan


@dataclass(frozen=True, slots=True)
class _UnderWay:
    plan: StepPlan
    pending: PendingStep | None  # None of a plan that found nothing to compute


class AheadCore(EngineCore):
    """See `EngineCore`; a call of `step` accounts for a step that was launched by the one before.

    Where nothing was launched, and where nothing is to be launched behind it, it is the plain loop.
    """

    _under_way: _UnderWay | None = None
    _observe: Observe | None = None

    @property
    def has_work(self) -> bool:
        return self._under_way is not None or super().has_work

    def handle(self, command: Command) -> None:
        if isinstance(command, Observe):
            self._observe = command
            self._listen()
        else:
            super().handle(command)

    def _listen(self) -> None:
        """Let those who listen change, once the state is one between two steps."""
        if self._observe is not None and self._under_way is None:
            super().handle(self._observe)
            self._observe = None

    def step(self) -> StepOutput:
        begin = time.monotonic()
        before = copy(self.scheduler.counters)
        deltas = self._take_news(begin)
        now, seconds = self._under_way, 0.0  # spent on planning
        if now is None:
            plan = self._plan(begin)
            seconds = time.monotonic() - begin
            now = self._launch(plan)
            self.scheduler.begin(plan)
        ahead = None
        if now.pending is not None and not self._recorder.needs_rest and self._observe is None:
            resumed = time.monotonic()
            plan = self._plan(resumed)
            seconds += time.monotonic() - resumed
            if plan.chunks or self.scheduler.counters.preemptions > before.preemptions:
                ahead = self._launch(plan)
            else:
                self._recorder.unplanned()
        return self._account(now, ahead, deltas, begin, seconds, before)

    def _launch(self, plan: StepPlan) -> _UnderWay:
        return _UnderWay(plan, self.runner.execute(plan) if plan.chunks else None)

    def _account(
        self,
        now: _UnderWay,
        ahead: _UnderWay | None,
        deltas: list[TokenDelta],
        begin: float,
        seconds: float,
        before: Counters,
    ) -> StepOutput:
        told, result = now.plan, None
        if now.pending is not None:
            result = now.pending.result()
            arrived = time.monotonic()
            told = replace(told, chunks=[c for c in told.chunks if self.scheduler.awaiting(c)])
            deltas += self.scheduler.update(now.plan, result, arrived)
            # Of the step's own time, what was not hidden behind the one before.
            waited = max(0.0, arrived - begin - seconds)
            result.sample_seconds = min(result.sample_seconds, waited)
            result.forward_seconds = waited - result.sample_seconds
        if ahead is not None:
            self.scheduler.begin(ahead.plan)
        self._under_way = ahead
        stats = self._stats(told, result, before, seconds)
        output = self._output(told, deltas, stats, begin, begin + seconds)
        self._listen()
        return output


def create_core(runner: Runner, cache: CacheSettings, scheduler: SchedulerSettings) -> EngineCore:
    """The engine with the loop that the settings ask for.

    Raises:
        ConfigError: the policy cannot be loaded, or two settings exclude each other.
    """
    if scheduler.async_scheduling and scheduler.speculative in ("ngram", "draft"):
        raise ConfigError(
            "--speculative needs the tokens that --async-scheduling does not wait for",
            param="speculative",
        )
    kind = AheadCore if scheduler.async_scheduling else EngineCore
    return kind(runner, cache, scheduler)
