"""An engine's state rebuilt from its events alone, by the rules in `engine/events.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from pellucid.engine.ahead import AheadCore
from pellucid.engine.core import EngineCore
from pellucid.engine.events import Share, Snapshot, StepEvents


@dataclass
class Seen:
    """One request."""

    request_id: str
    num_computed: int = 0
    num_tokens: int = 0
    num_preemptions: int = 0
    is_running: bool = False
    num_blocks: int = 0
    table: list[int] = field(default_factory=list)


class Replay:
    """Apply every step's events in order; the first has to bring a snapshot.

    To who `misses_nothing`, each later snapshot has to say what the events before it said.
    """

    def __init__(self, *, misses_nothing: bool = False) -> None:
        self.misses_nothing = misses_nothing
        self.requests: dict[int, Seen] = {}
        self.named: set[int] = set()
        self.has_begun = False

    def apply(self, step: StepEvents) -> None:
        if step.snapshot is not None:
            told = (self.requests, self.named)
            self._settle(step.snapshot)
            if self.misses_nothing and self.has_begun:
                assert told == (self.requests, self.named)
        self.has_begun = True
        for queued in step.queued:
            self.requests[queued.number] = Seen(
                queued.request_id, num_tokens=queued.num_prompt_tokens
            )
        for preempted in step.preempted:
            request = self.requests[preempted.number]
            # Blocks of a share that was planned and withdrawn in this very step count, too.
            assert request.num_blocks <= preempted.num_blocks
            request.num_computed, request.is_running = 0, False
            request.num_blocks, request.table = 0, []
            request.num_preemptions += 1
        for admitted in step.admitted:
            request = self.requests[admitted.number]
            assert admitted.is_return == (request.num_preemptions > 0)
            request.num_computed = admitted.num_found_tokens
            request.is_running = True
        for share in step.shares:
            self._share(share)
        self.named -= set(step.forgotten)
        self.named |= set(step.named)
        for finished in step.finished:
            del self.requests[finished.number]

    def _share(self, share: Share) -> None:
        request = self.requests[share.number]
        assert share.start == request.num_computed
        request.num_computed += share.num_computed
        request.num_tokens += share.num_generated
        request.num_blocks += share.num_blocks
        request.table += share.block_ids

    def _settle(self, snapshot: Snapshot) -> None:
        self.requests = {
            live.queued.number: Seen(
                live.queued.request_id,
                live.num_computed_tokens,
                live.num_tokens,
                live.num_preemptions,
                live.is_running,
                live.num_blocks,
                list(live.block_ids),
            )
            for live in snapshot.requests
        }
        self.named = set(snapshot.named)

    def check(self, engine: EngineCore, step: StepEvents, *, detail: bool) -> None:
        """Compare with the truth; nothing may have happened since the step."""
        scheduler, kv = engine.scheduler, engine.scheduler.kv
        assert {seen.request_id for seen in self.requests.values()} == set(scheduler.requests)
        for seen in self.requests.values():
            request = scheduler.requests[seen.request_id]
            assert seen.is_running == (seen.request_id in scheduler.running)
            assert seen.num_computed == request.num_computed_tokens
            assert seen.num_tokens == request.num_tokens
            assert seen.num_preemptions == request.times.num_preemptions
            assert seen.num_blocks == len(request.block_table)
            if detail:
                assert seen.table == request.block_table
        pool = step.pool
        assert (pool.num_used, pool.num_free) == (kv.num_used, kv.num_free)
        assert pool.num_named == kv.num_named
        if detail:
            assert self.named == set(kv.named_blocks())
            assert pool.num_used == len({b for seen in self.requests.values() for b in seen.table})
        self._check_stalls(engine, step)

    def _check_stalls(self, engine: EngineCore, step: StepEvents) -> None:
        """Whoever got nothing has exactly one reason."""
        served = {share.number for share in step.shares}
        named = [stall.number for stall in step.stalls]
        assert len(named) == len(set(named))
        assert not served & set(named)
        new = {queued.number for queued in step.queued}
        # Whoever came after a step was planned has no reason yet.
        excused = not step.shares or isinstance(engine, AheadCore)
        for number, seen in self.requests.items():
            if number in served or number in named or (number in new and excused):
                continue
            assert not seen.is_running
            assert step.queue_waits_for is not None
