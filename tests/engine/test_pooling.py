"""Requests that end with a vector, beside those that generate. Random lives: test_state_machine."""

from __future__ import annotations

import pytest

from pellucid.messages import Pooling, TokenDelta
from pellucid.runner.fake import expected_answer, expected_embedding
from tests.engine.helpers import core, drain, message, tokens

PROMPT = list(range(5, 42))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_one_delta_with_the_vector_after_as_many_steps_as_the_budget_asks(pooling: Pooling) -> None:
    engine = core(max_num_batched_tokens=12)
    engine.add(message("answer", [1, 2, 3], max_tokens=9))
    engine.add(message("vector", PROMPT, arrival=1.0, pooling=pooling))
    deltas: list[TokenDelta] = []
    steps = 0
    while not deltas:
        found = engine.step().deltas
        deltas = [delta for delta in found if delta.request_id == "vector"]
        steps += 1
    assert steps == 4, "9 tokens beside the prompt of 3, then 11 beside each token of the answer"
    assert deltas[0].embedding == expected_embedding(PROMPT, pooling)
    assert (deltas[0].finish_reason, deltas[0].token_ids) == ("stop", [])
    assert deltas[0].times is not None
    assert deltas[0].times.first_token is None
    assert tokens(drain(engine)["answer"]) == expected_answer([1, 2, 3], 9)[4:]
    assert engine.scheduler.kv.num_used == 0
    assert engine.scheduler.counters.generated_tokens == 9


def test_a_prompt_may_fill_the_context_since_no_answer_follows() -> None:
    engine = core(num_blocks=16, block_size=4)
    assert engine.info.max_model_len == 64
    for name, length in (("fits", 64), ("exceeds", 65)):
        engine.add(message(name, [7] * length, pooling="last"))
    deltas = {name: found[-1] for name, found in drain(engine).items()}
    assert deltas["fits"].embedding == expected_embedding([7] * 64, "last")
    assert deltas["exceeds"].finish_reason == "error"
    assert "leaves no room for them" in (deltas["exceeds"].error or "")


def test_a_vector_waits_for_its_turn_and_ends_at_its_deadline() -> None:
    engine = core(max_num_seqs=1, policy="priority")
    engine.add(message("first", PROMPT, pooling="mean", priority=2))
    engine.add(message("urgent", PROMPT, arrival=1.0, pooling="mean", priority=1))
    engine.add(message("late", PROMPT, arrival=2.0, pooling="mean", priority=3, deadline=0.5))
    ends = {name: found[0].finish_reason for name, found in drain(engine).items()}
    assert list(ends.items()) == [("late", "timeout"), ("urgent", "stop"), ("first", "stop")]
