"""The engine's loop around its scheduler: whom it refuses, and what it tells of its steps."""

from __future__ import annotations

import msgspec
import pytest

from pellucid.runner.fake import expected_answer
from tests.engine.helpers import core, drain, message, tokens


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "empty"), ([1, 49_152], "vocabulary"), ([-1], "vocabulary"), ([1] * 256, "context")],
)
def test_what_can_never_run_ends_with_an_error_instead_of_waiting(
    prompt: list[int], words: str
) -> None:
    engine = core(num_blocks=64, block_size=4)
    engine.add(message("bad", prompt))
    (delta,) = drain(engine)["bad"]
    assert delta.finish_reason == "error"
    assert delta.times is not None
    assert words in (delta.error or "")


def test_what_the_pool_could_never_hold_is_refused_even_if_the_context_could() -> None:
    engine = core(num_blocks=4, block_size=4)
    engine.info = msgspec.structs.replace(engine.info, max_model_len=100)
    engine.add(message("too long", [1] * 9))
    engine.add(message("fits", [1] * 8))
    deltas = drain(engine)
    assert "holds only 16 tokens" in (deltas["too long"][0].error or "")
    assert len(tokens(deltas["fits"])) == 8


def test_an_id_in_use_is_refused_and_its_first_owner_goes_on() -> None:
    engine = core()
    engine.add(message("a", [1, 2], max_tokens=3))
    engine.add(message("a", [3, 4]))
    refused, *answer = drain(engine)["a"]
    assert "in use" in (refused.error or "")
    assert tokens(answer) == expected_answer([1, 2], 3)


def test_after_an_abort_an_idle_engine_reports_that_no_block_is_used() -> None:
    engine = core()
    engine.add(message("a", [1] * 9))
    assert engine.step().stats.kv_blocks_used == 3
    engine.abort(["a"])
    assert engine.has_work
    assert engine.step().stats.kv_blocks_used == 0
    assert not engine.has_work


def test_steps_say_what_they_computed_also_for_a_second_time() -> None:
    engine = core(prefix_caching=False, max_chunk_tokens=5)
    engine.add(message("a", [1] * 9, max_tokens=4))
    stats = [engine.step().stats for _ in range(3)]
    engine.scheduler._preempt(engine.scheduler.requests["a"])
    stats += [engine.step().stats for _ in range(4)]
    found = [(s.num_prompt_tokens, s.num_generated_tokens) for s in stats]
    assert found == [(5, 0), (4, 1), (0, 1), (5, 0), (4, 0), (0, 1), (0, 1)]
    assert not engine.has_work


def test_steps_say_who_runs_who_waits_and_what_was_found() -> None:
    engine = core(max_num_seqs=1)
    for index in range(3):
        engine.add(message(f"r{index}", [1] * 9, arrival=index, max_tokens=2))
    stats = [engine.step().stats for _ in range(6)]
    assert [(s.num_running, s.num_waiting) for s in stats] == [
        *((1, 2), (0, 2)),
        *((1, 1), (0, 1)),
        *((1, 0), (0, 0)),
    ]
    looked_up = [(s.prefix_queries, s.prefix_hits) for s in stats]
    assert looked_up == [(9, 0), (0, 0), (9, 8), (0, 0), (9, 8), (0, 0)]


def test_the_first_token_says_how_long_its_request_waited() -> None:
    engine = core()
    engine.add(message("a", [1] * 9, max_tokens=3))
    first, middle, last = drain(engine)["a"]
    assert first.times is not None
    assert first.times.scheduled is not None
    assert middle.times is None
    assert last.times is not None
    assert last.times.finished is not None
    assert last.times.first_token is not None
    assert first.times.scheduled <= last.times.first_token < last.times.finished


def test_steps_count_those_who_wait_for_anothers_prefix() -> None:
    engine = core(num_blocks=6)
    engine.add(message("computes", [5] * 12))
    engine.add(message("twin", [5] * 12, arrival=1.0))
    engine.add(message("too large", [9] * 16, arrival=2.0))
    stats = engine.step().stats
    assert (stats.num_running, stats.num_waiting, stats.num_deferred) == (1, 2, 1)
    assert stats.schedule_seconds > 0.0
