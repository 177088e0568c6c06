"""The requests that are under way: who reads each of them, and how it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pellucid.config import SchedulerSettings
from pellucid.errors import BadRequest, EngineDead
from pellucid.frontend.admission import Admission
from pellucid.frontend.generation import Generation
from pellucid.frontend.inputs import PreparedRequest
from pellucid.frontend.orphans import Orphans
from pellucid.frontend.output_processor import OutputProcessor
from pellucid.frontend.stats import RequestReport, StatsListener
from pellucid.messages import AddRequest, FinishReason, StepOutput

if TYPE_CHECKING:
    from pellucid.frontend.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class OpenRequests:
    """Belongs to one event loop; outlives the engines that work on it.

    Args:
        retries: engines that may die under a request before its first token.
        listeners: are told of every step and of every end; the owner may change the list.
        abort: tells the engine to drop answers by their ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        limits: SchedulerSettings,
        retries: int,
        listeners: list[StatsListener],
        abort: Callable[[list[str]], object],
    ) -> None:
        self._limits = limits
        self._retries = retries
        self._listeners = listeners
        self._abort_in_engine = abort
        self._outputs = OutputProcessor(tokenizer)
        self._admission = Admission(limits)
        self._orphans = Orphans(self._expire)
        # Each is here as long as tokens of it are expected, or somebody reads it.
        self._generations: WeakValueDictionary[str, Generation] = WeakValueDictionary()

    def __len__(self) -> int:
        """Answers that run or wait."""
        return len(self._outputs)

    # ---- from opening to end

    def check_room(self, num_answers: int, num_preparing: int) -> None:
        """Raises Overloaded, or BadRequest for more answers than ever fit."""
        self._admission.check(num_answers, len(self) + num_preparing)

    def add(self, request: PreparedRequest) -> Generation:
        """Raises Overloaded, or BadRequest if its id is in use."""
        if self._limits.max_waiting_tokens is not None:
            waiting = self._outputs.num_waiting_tokens
            self._admission.check_tokens(len(request.prompt_token_ids), waiting)
        if any(sequence.request_id in self._outputs for sequence in request.sequences):
            raise BadRequest(
                f"request_id {request.request_id} is in use",
                param="request_id",
                code="invalid_value",
            )
        generation = Generation(request, self.abort)
        generation.retries_left = self._retries
        self._generations[request.request_id] = generation
        for index, sequence in enumerate(request.sequences):
            self._outputs.add(sequence, request.prompt_token_ids, index, generation.put)
        return generation

    def take(self, output: StepOutput) -> None:
        """Hand a step's tokens to their readers."""
        step = self._outputs.process(output)
        if step.stopped:
            self._abort_in_engine(step.stopped)
        self._tell(lambda listener: listener.on_step(step.report))
        for report in step.finished:
            self._account(report)

    def find(self, request_id: str) -> Generation | None:
        return self._generations.get(request_id)

    def abort(self, generation: Generation) -> bool:
        """End a request; its reader gets what is left. False if there was nothing to end."""
        ended = self._end(generation, "abort")
        if ended:
            self._abort_in_engine(ended)
        return bool(ended)

    def _end(self, generation: Generation, reason: FinishReason) -> list[str]:
        """End what is unfinished of a request; returns the ids of these answers."""
        now = time.monotonic()
        ended: list[str] = []
        for sequence in generation.request.sequences:
            if report := self._outputs.finish(sequence.request_id, reason, now):
                ended.append(sequence.request_id)
                self._account(report)
        return ended

    # ---- when an engine dies

    def engine_died(self, death: EngineDead) -> None:
        """End every request by `death` but for those that another engine may take."""
        for generation in list(self._generations.values()):
            if self._may_wait(generation):
                self._orphans.add(generation)
            else:
                self._fail(generation, death)

    def take_orphans(self) -> list[AddRequest]:
        """What waits for another engine and still has a reader."""
        return [
            sequence
            for orphan in self._orphans.take()
            for sequence in orphan.request.sequences
            if sequence.request_id in self._outputs
        ]

    def give_up(self, death: EngineDead) -> None:
        """There will be no other engine: end by `death` what waits for one."""
        for orphan in self._orphans.take():
            self._fail(orphan, death)

    def _fail(self, generation: Generation, death: EngineDead) -> None:
        generation.fail(death)
        self._end(generation, "error")

    def _may_wait(self, generation: Generation) -> bool:
        generation.retries_left -= 1
        ids = (sequence.request_id for sequence in generation.request.sequences)
        return generation.retries_left >= 0 and all(self._outputs.is_untouched(i) for i in ids)

    def _expire(self, generation: Generation) -> None:
        """The deadline of a request passed while there was no engine to notice it."""
        self._end(generation, "timeout")

    # ---- those who look on

    def _account(self, report: RequestReport) -> None:
        if report.times.finished is not None:
            self._admission.observe(report.times.finished - report.times.arrival)
        self._tell(lambda listener: listener.on_finish(report))

    def _tell(self, call: Callable[[StatsListener], None]) -> None:
        for listener in self._listeners:
            try:
                call(listener)
            except Exception:  # statistics must never end a stream
                logger.exception("a statistics listener failed")
