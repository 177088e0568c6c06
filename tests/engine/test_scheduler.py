"""The engine core with the fake runner, whose answers are right only if every block was."""

from __future__ import annotations

from collections import Counter

import pytest

from pellucid.config import SchedulerSettings
from pellucid.engine.policy import Priority
from pellucid.engine.request import Request
from pellucid.messages import TokenDelta
from pellucid.runner.base import StepResult
from pellucid.runner.fake import expected_answer
from tests.engine.helpers import core, drain, message, tokens

PROMPTS = {f"r{i}": [7, 8, 9, 10, *([20 + i] * (3 * i + 1))] for i in range(8)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_seqs": 1},
        {"max_chunk_tokens": 7},
        {"max_num_batched_tokens": 5},
        {"num_blocks": 14},
        {"num_blocks": 14, "max_chunk_tokens": 3, "max_num_batched_tokens": 9},
        {"prefix_caching": False},
        {"policy": "shortest-first"},
        {"policy": "fair-share", "num_blocks": 14},
    ],
    ids=str,
)
def test_answers_do_not_depend_on_how_they_were_scheduled(settings: dict[str, object]) -> None:
    engine = core(**settings)  # type: ignore[arg-type]
    for index, (name, prompt) in enumerate(PROMPTS.items()):
        engine.add(message(name, prompt, arrival=index, max_tokens=20, user=name[-1]))
    deltas = drain(engine)
    for name, prompt in PROMPTS.items():
        assert tokens(deltas[name]) == expected_answer(prompt, 20)
        assert deltas[name][-1].finish_reason == "length"
    assert engine.scheduler.kv.num_used == 0


def test_a_pool_too_small_for_all_preempts_and_the_oldest_is_not_the_victim() -> None:
    engine = core(num_blocks=10)
    for index in range(4):
        engine.add(message(f"r{index}", [index] * 5, arrival=index, max_tokens=20))
    deltas = drain(engine)
    assert engine.scheduler.counters.preemptions > 0
    times = {name: d[-1].times for name, d in deltas.items()}
    assert times["r0"] is not None
    assert times["r0"].num_preemptions == 0
    assert any(t is not None and t.num_preemptions for t in times.values())


def test_budget_and_chunk_limit_hold_in_every_step_and_decodes_go_first() -> None:
    engine = core(num_blocks=200, max_num_batched_tokens=16, max_chunk_tokens=8)
    engine.add(message("short", [1, 2, 3], max_tokens=40))
    engine.step()
    engine.add(message("long", list(range(100)), arrival=1.0))
    sizes = []
    while engine.scheduler.requests:
        plan = engine.scheduler.schedule(0.0)
        assert plan.num_tokens <= 16
        assert all(chunk.num_tokens <= 8 for chunk in plan.chunks)
        assert plan.chunks[0].request_id == "short" or "short" not in engine.scheduler.requests
        sizes.append(len(plan.chunks))
        engine.scheduler.begin(plan)
        engine.scheduler.update(plan, engine.runner.execute(plan).result(), 0.0)
    assert 2 in sizes  # the stream went on while the long prompt was computed


def test_a_prompt_does_not_stall_a_stream_that_was_admitted_after_it() -> None:
    engine = core(num_blocks=200, max_num_batched_tokens=16, max_chunk_tokens=13)
    engine.add(message("long", list(range(100))))
    engine.add(message("short", [1, 2, 3], arrival=1.0))
    engine.step()
    engine.scheduler.token_budget = 13
    plan = engine.scheduler.schedule(0.0)
    assert [(c.request_id, c.num_tokens) for c in plan.chunks] == [("short", 1), ("long", 12)]


def test_what_is_computed_again_does_not_stall_a_stream_either() -> None:
    engine = core(num_blocks=200, prefix_caching=False, max_chunk_tokens=60)
    engine.add(message("long", list(range(100))))
    engine.step()
    engine.step()
    engine.scheduler._preempt(engine.scheduler.requests["long"])
    engine.add(message("short", [1, 2, 3], arrival=1.0))
    engine.step()
    plan = engine.scheduler.schedule(0.0)
    assert [(c.request_id, c.num_tokens) for c in plan.chunks] == [("short", 1), ("long", 41)]


def test_a_shared_prompt_that_arrives_at_once_is_computed_once() -> None:
    engine = core(num_blocks=200, max_num_seqs=32)
    prompt = list(range(3, 80))
    for index in range(16):
        engine.add(message(f"r{index}", [*prompt, 200 + index], arrival=index))
    deltas = drain(engine)
    counters = engine.scheduler.counters
    assert counters.prompt_tokens < 2 * len(prompt)
    assert (counters.prefix_queries, counters.prefix_hits) == (16 * 78, 15 * 76)
    for index in range(16):
        assert tokens(deltas[f"r{index}"]) == expected_answer([*prompt, 200 + index], 8)
    assert [deltas[f"r{i}"][-1].num_cached_tokens for i in range(1, 16)] == [76] * 15


def test_stop_tokens_and_eos_end_an_answer_unless_told_otherwise() -> None:
    prompt = [5, 6, 7]
    answer = expected_answer(prompt, 8)
    engine = core()
    engine.add(message("stop", prompt, stop_token_ids=[answer[3]]))
    engine.add(message("late", prompt, stop_token_ids=[answer[3]], min_tokens=4))
    engine.add(message("in time", prompt, stop_token_ids=[answer[3]], min_tokens=3))
    deltas = drain(engine)
    assert tokens(deltas["stop"]) == answer[:4]
    assert deltas["stop"][-1].finish_reason == "stop"
    assert deltas["stop"][-1].stop_token_id == answer[3]
    assert tokens(deltas["late"]) == answer
    assert tokens(deltas["in time"]) == answer[:4]


def test_what_a_step_brings_behind_a_stop_token_is_dropped() -> None:
    engine = core()
    engine.add(message("a", [1, 2, 3], stop_token_ids=[7]))
    plan = engine.scheduler.schedule(0.0)
    engine.scheduler.begin(plan)
    (delta,) = engine.scheduler.update(plan, StepResult([[5, 7, 9]], [None], [None]), 0.0)
    assert (delta.token_ids, delta.finish_reason) == ([5, 7], "stop")
    assert engine.scheduler.counters.generated_tokens == 2


def test_eos_is_no_stop_reason_and_ignore_eos_goes_past_it() -> None:
    prompt = [5, 6, 7]
    answer = expected_answer(prompt, 8)
    engine = core()
    engine._eos = frozenset({answer[2]})
    engine.add(message("a", prompt))
    engine.add(message("b", prompt, ignore_eos=True))
    deltas = drain(engine)
    assert tokens(deltas["a"]) == answer[:3]
    assert deltas["a"][-1].stop_token_id is None
    assert tokens(deltas["b"]) == answer


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_frees_every_block_at_once(steps: int) -> None:
    engine = core(max_num_seqs=2)
    for index in range(4):
        engine.add(message(f"r{index}", [index] * 9, arrival=index))
    for _ in range(steps):
        engine.step()
    engine.abort(["r0", "r3", "nobody"])
    engine.scheduler.check_integrity()
    assert set(engine.scheduler.requests) == {"r1", "r2"}
    deltas = drain(engine)
    assert tokens(deltas["r1"])[-1:] == expected_answer([1] * 9, 8)[-1:]
    engine.add(message("r0", [0] * 9))  # the name is free again
    assert tokens(drain(engine)["r0"]) == expected_answer([0] * 9, 8)


def test_a_deadline_ends_waiting_and_running_requests() -> None:
    engine = core(max_num_seqs=1)
    engine.add(message("running", [1] * 9, deadline=5.0, max_tokens=100))
    engine.add(message("waiting", [2] * 9, arrival=1.0, deadline=5.0))
    engine.add(message("patient", [3] * 9, arrival=2.0, deadline=50.0))
    engine.scheduler.schedule(0.0)
    assert engine.scheduler.expire(4.9) == []
    expired = engine.scheduler.expire(5.0)
    assert {d.request_id for d in expired} == {"running", "waiting"}
    assert all(d.finish_reason == "timeout" for d in expired)
    engine.scheduler.check_integrity()
    assert set(engine.scheduler.requests) == {"patient"}


def test_an_answer_ends_where_the_context_ends() -> None:
    engine = core(num_blocks=16, block_size=4)
    engine.add(message("a", [1] * 60, max_tokens=None))
    deltas = drain(engine)["a"]
    assert len(tokens(deltas)) == 4
    assert deltas[-1].finish_reason == "length"


def test_prompt_logprobs_cover_the_prompt_once_even_when_chunked_and_preempted() -> None:
    engine = core(num_blocks=12, max_chunk_tokens=5)
    prompt = [11, 12, 13, 14, 15, 16, 17, 18, 19]
    for index in range(3):
        engine.add(message(f"r{index}", prompt, arrival=index, max_tokens=20, prompt_logprobs=0))
    deltas = drain(engine)
    for index in range(3):
        entries = [d.prompt_logprobs for d in deltas[f"r{index}"] if d.prompt_logprobs is not None]
        assert len(entries) == 1
        assert entries[0][0] is None
        assert [e.token_id for e in entries[0][1:] if e is not None] == prompt[1:]


def test_two_runs_of_the_same_requests_take_the_same_steps() -> None:
    def run() -> list[list[tuple[str, int, int]]]:
        engine = core(num_blocks=14)
        for index, (name, prompt) in enumerate(PROMPTS.items()):
            engine.add(message(name, prompt, arrival=index, max_tokens=20))
        steps = []
        while engine.scheduler.requests:
            plan = engine.scheduler.schedule(0.0)
            steps.append([(c.request_id, c.start, c.num_tokens) for c in plan.chunks])
            engine.scheduler.begin(plan)
            engine.scheduler.update(plan, engine.runner.execute(plan).result(), 0.0)
        return steps

    assert run() == run()


def test_a_prompt_preempted_half_way_starts_its_logprobs_again() -> None:
    engine = core(max_chunk_tokens=4)
    prompt = list(range(11, 21))
    engine.add(message("a", prompt, prompt_logprobs=0))
    engine.step()
    engine.scheduler._preempt(engine.scheduler.requests["a"])
    (entries,) = [d.prompt_logprobs for d in drain(engine)["a"] if d.prompt_logprobs is not None]
    assert [e.token_id for e in entries if e is not None] == prompt[1:]


class Ledger(Priority):
    """Adds up what requests are charged for."""

    def __init__(self) -> None:
        self.charged: Counter[str] = Counter()

    def charge(self, request: Request, num_tokens: int) -> None:
        self.charged[request.request_id] += num_tokens


def test_what_a_victim_was_to_compute_goes_back_into_the_budget() -> None:
    engine = core(num_blocks=3, prefix_caching=False)
    ledger = engine.scheduler.policy = Ledger()
    engine.add(message("victim", [1, 2], priority=9))
    engine.step()
    engine.add(message("grows", [1, 2, 3, 4], priority=0))
    engine.add(message("has room", [1, 2], priority=1))
    engine.step()
    engine.scheduler.token_budget = 2
    plan = engine.scheduler.schedule(0.0)
    assert plan.dropped == ["victim"]
    assert [c.request_id for c in plan.chunks] == ["grows", "has room"]
    assert ledger.charged == {"victim": 3, "grows": 5, "has room": 3}


def test_who_takes_the_name_of_another_does_not_inherit_its_deadline() -> None:
    engine = core()
    engine.add(message("a", [1] * 9, deadline=5.0))
    engine.abort(["a"])
    engine.add(message("a", [1] * 9, deadline=50.0))
    assert engine.scheduler.expire(6.0) == []
    assert len(engine.scheduler.expire(50.0)) == 1


@pytest.mark.parametrize("preempted_at", [0, 1, 2])
def test_prompt_logprobs_are_whole_if_a_chunk_is_under_way_at_a_preemption(
    preempted_at: int,
) -> None:
    engine = core(max_chunk_tokens=4)
    scheduler, prompt = engine.scheduler, list(range(11, 21))
    engine.add(message("a", prompt, prompt_logprobs=0, max_tokens=3))
    deltas: list[TokenDelta] = []
    for step in range(10):
        plan = scheduler.schedule(0.0)
        scheduler.begin(plan)
        result = engine.runner.execute(plan).result()
        if step == preempted_at:
            scheduler._preempt(scheduler.requests["a"])
        deltas += scheduler.update(plan, result, 0.0)
    (entries,) = [d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None]
    assert [e and e.token_id for e in entries] == [None, *prompt[1:]]
    assert tokens(deltas) == expected_answer(prompt, 3)


def test_nobody_is_admitted_in_a_step_that_preempted() -> None:
    engine = core(num_blocks=12)
    for index in range(12):
        engine.add(message(f"r{index}", [index] * 3, arrival=index, max_tokens=30))
    preempting_steps = 0
    while engine.scheduler.requests:
        before = engine.scheduler.counters.preemptions
        plan = engine.scheduler.schedule(0.0)
        if engine.scheduler.counters.preemptions > before:
            preempting_steps += 1
            assert plan.new_rows == []
        engine.scheduler.begin(plan)
        engine.scheduler.update(plan, engine.runner.execute(plan).result(), 0.0)
    assert preempting_steps > 0


def test_the_default_budget_has_room_for_every_answer_and_a_prompt() -> None:
    engine = core(num_blocks=4000, block_size=16, max_num_seqs=300)
    for i in range(299):
        engine.add(message(f"r{i}", [i], max_tokens=100))
    while len(engine.scheduler.running) < 299:
        engine.step()
    engine.add(message("late", list(range(1000)), max_tokens=100))
    stats = engine.step().stats
    assert stats.num_generated_tokens == 299
    assert stats.num_prompt_tokens >= 299


def test_the_default_budget_suits_the_device_and_gives_way_to_a_setting() -> None:
    assert SchedulerSettings().token_budget("cpu") < SchedulerSettings().token_budget("cuda:0")
    assert SchedulerSettings(max_num_batched_tokens=7).token_budget("cpu") == 7
