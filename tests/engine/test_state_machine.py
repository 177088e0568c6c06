"""Random lives of requests: in whatever order things happen, no block is lost or misused."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pellucid.engine import events
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.messages import Observe, Pooling, StepOutput
from pellucid.runner.fake import expected_answer, expected_embedding
from tests.engine.helpers import core, drain, is_between_steps, message
from tests.engine.prophet import Prophet
from tests.engine.replay import Replay
from tests.runner.digest_draft import CheckedDraftModel

SNAPSHOT_STEPS = events.SNAPSHOT_STEPS
# Few distinct tokens and few distinct blocks, so that prefixes collide often.
PROMPTS = st.lists(st.integers(5, 7), min_size=1, max_size=30) | st.builds(
    lambda blocks, tail: [token for block in blocks for token in block] + tail,
    st.lists(st.sampled_from([[5] * 4, [6] * 4]), max_size=6),
    st.lists(st.integers(5, 7), min_size=1, max_size=5),
)


class EngineLife(RuleBasedStateMachine):
    """Of the plain loop, with or without drafts, and with `ahead` of the one that plans ahead."""

    engine: EngineCore
    ahead = False
    drafts = False
    draft_model = False

    @initialize(
        num_blocks=st.integers(12, 40),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 40),
        chunk=st.integers(1, 20),
        caching=st.booleans(),
        policy=st.sampled_from(["fifo", "priority", "shortest-first", "fair-share"]),
        detail=st.booleans(),
        snapshot_steps=st.sampled_from([4, SNAPSHOT_STEPS]),
    )
    def start(
        self,
        num_blocks: int,
        max_num_seqs: int,
        budget: int,
        chunk: int,
        caching: bool,
        policy: str,
        detail: bool,
        snapshot_steps: int,
    ) -> None:
        events.SNAPSHOT_STEPS = snapshot_steps
        self.engine = core(
            num_blocks=num_blocks,
            prefix_caching=caching,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_chunk_tokens=chunk,
            policy=policy,
            async_scheduling=self.ahead,
        )
        self.prophet = Prophet([2, 0, 3, 1])
        if self.drafts:
            self.engine.scheduler.drafting = Drafting(self.prophet, 3, step_tokens=24)
        if self.draft_model:
            capacity = self.engine.runner.kv_capacity()
            self.drafter = CheckedDraftModel(capacity, max_num_seqs=max_num_seqs)
            self.engine.scheduler.drafting = Drafting(self.drafter, 3, step_tokens=24)
        self.budget = budget
        self.count = 0
        self.open: dict[str, tuple[list[int], int]] = {}
        self.pooling: dict[str, Pooling | None] = {}
        self.got: dict[str, list[int]] = {}
        self.listening, self.detail = False, False
        self.listen(True, detail)

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 15),
        priority=st.integers(0, 2),
        salt=st.sampled_from([None, "x"]),
        pooling=st.sampled_from([None, None, "last", "mean"]),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        priority: int,
        salt: str | None,
        pooling: Pooling | None,
    ) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.open[name] = (prompt, max_tokens)
        self.got[name] = []
        self.pooling[name] = pooling
        self.prophet.texts[name] = prompt + expected_answer(prompt, max_tokens)
        self.engine.add(
            message(
                name,
                prompt,
                arrival=float(self.count),
                max_tokens=max_tokens,
                priority=priority,
                user=f"u{self.count % 3}",
                cache_salt=salt,
                pooling=pooling,
                deadline=1e12,
            )
        )

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.engine.abort([name])
        del self.open[name]

    @rule()
    def expire_everyone(self) -> None:
        if self.count % 5 == 4:
            for delta in self.engine.scheduler.expire(1e13):
                del self.open[delta.request_id]

    @rule(listening=st.booleans(), detail=st.booleans())
    def listen(self, listening: bool, detail: bool) -> None:
        self.engine.handle(Observe(num_listeners=int(listening), detail=detail))
        changed = (listening, detail) != (self.listening, self.detail)
        if changed:
            self.replay: Replay | None = None  # until the first snapshot
            self.since_snapshot = 0
        self.listening, self.detail = listening, detail
        if is_between_steps(self.engine):
            return
        output = self.engine.step()
        self._take(output.deltas)
        if not changed:  # who is new begins behind the step under way
            self._watch(output)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            output = self.engine.step()
            assert output.stats.num_running <= self.engine.scheduler.settings.max_num_seqs
            self._take(output.deltas)
            self._watch(output)
            self.engine.scheduler.check_integrity()

    def _take(self, deltas: list) -> None:  # type: ignore[type-arg]
        for delta in deltas:
            prompt, max_tokens = self.open[delta.request_id]
            if pooling := self.pooling[delta.request_id]:
                assert (delta.finish_reason, delta.token_ids) == ("stop", [])
                assert delta.embedding == expected_embedding(prompt, pooling)
                del self.open[delta.request_id]
                continue
            got = self.got[delta.request_id]
            got += delta.token_ids
            assert got == expected_answer(prompt, len(got))
            if delta.finish_reason is not None:
                assert delta.finish_reason == "length"
                assert len(got) == max_tokens
                del self.open[delta.request_id]

    def _watch(self, output: StepOutput) -> None:
        assert bool(output.events) == self.listening
        if not self.listening:
            return
        step = events.decode(output.events)
        self.since_snapshot = 0 if step.snapshot is not None else self.since_snapshot + 1
        assert self.since_snapshot < events.SNAPSHOT_STEPS
        if self.replay is None:
            assert step.snapshot is not None
            self.replay = Replay(misses_nothing=True)
        self.replay.apply(step)
        if is_between_steps(self.engine):
            self.replay.check(self.engine, step, detail=self.detail)

    @invariant()
    def blocks_and_queues_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()
            assert set(self.engine.scheduler.requests) == set(self.open)

    def teardown(self) -> None:
        events.SNAPSHOT_STEPS = SNAPSHOT_STEPS
        if not hasattr(self, "engine"):
            return
        for deltas in drain(self.engine).values():
            self._take(deltas)
        assert not self.open, "every request comes to its end"
        assert self.engine.scheduler.kv.num_used == 0
        assert not self.prophet.present
        assert not self.draft_model or not self.drafter.present
        self.prophet.texts["last"] = [5, *expected_answer([5], 8)]
        self.engine.add(message("last", [5]))
        drain(self.engine)
        assert set(self.engine.runner._rows) == {"last"}, "the runner was told who has gone"


class EngineLifeAhead(EngineLife):
    ahead = True


class EngineLifeDrafting(EngineLife):
    drafts = True


class EngineLifeDraftModel(EngineLife):
    """What the draft model says is checked, too: its blocks are the engine's."""

    draft_model = True


EngineLife.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestEngineLife = EngineLife.TestCase
EngineLifeAhead.TestCase.settings = EngineLife.TestCase.settings
TestEngineLifeAhead = EngineLifeAhead.TestCase
EngineLifeDrafting.TestCase.settings = EngineLife.TestCase.settings
TestEngineLifeDrafting = EngineLifeDrafting.TestCase
EngineLifeDraftModel.TestCase.settings = EngineLife.TestCase.settings
TestEngineLifeDraftModel = EngineLifeDraftModel.TestCase
