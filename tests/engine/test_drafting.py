"""Speculation in the engine: answers stay what they are, and drafts take only what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.errors import ConfigError
from pellucid.messages import StepOutput
from pellucid.runner.fake import FakeRunner, expected_answer
from tests.engine.helpers import core, drain, message, tokens
from tests.engine.prophet import Prophet


def prophetic(
    rights: Sequence[int],
    *,
    num_blocks: int = 64,
    each: int = 4,
    step_tokens: int = 64,
    **settings: Any,
) -> tuple[EngineCore, Prophet]:
    prophet = Prophet(rights)
    engine = EngineCore(
        FakeRunner(num_blocks=num_blocks, block_size=4),
        CacheSettings(),
        SchedulerSettings(**settings),
        Drafting(prophet, each, step_tokens),
    )
    return engine, prophet


def add(engine: EngineCore, prophet: Prophet, name: str, prompt: list[int], **fields: Any) -> None:
    prophet.texts[name] = prompt + expected_answer(prompt, fields["max_tokens"])
    engine.add(message(name, prompt, **fields))


@given(
    prompts=st.lists(st.lists(st.integers(5, 9), min_size=1, max_size=20), min_size=1, max_size=5),
    rights=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 30), min_size=5, max_size=5),
    num_blocks=st.integers(14, 40),
    budget=st.integers(1, 24),
    each=st.integers(1, 6),
    step_tokens=st.integers(1, 16),
)
def test_answers_are_those_without_drafts(
    prompts: list[list[int]],
    rights: list[int],
    lengths: list[int],
    num_blocks: int,
    budget: int,
    each: int,
    step_tokens: int,
) -> None:
    """The fake runner's answers are right only if every block and every token was."""
    engine, prophet = prophetic(
        rights,
        num_blocks=num_blocks,
        each=each,
        step_tokens=step_tokens,
        max_num_batched_tokens=budget,
        max_num_seqs=3,
    )
    for i, prompt in enumerate(prompts):
        add(engine, prophet, f"r{i}", prompt, max_tokens=lengths[i], logprobs=1)
    answers = drain(engine)
    for i, prompt in enumerate(prompts):
        deltas = answers[f"r{i}"]
        assert tokens(deltas) == expected_answer(prompt, lengths[i])
        assert prophet.ends.get(f"r{i}") in (None, len(prompt) + lengths[i])
        assert [len(delta.logprobs or []) for delta in deltas] == [
            len(delta.token_ids) for delta in deltas
        ]
        assert deltas[-1].finish_reason == "length"
    assert engine.scheduler.kv.num_used == 0
    assert not prophet.present, "who has left is remembered"
    assert all(accepted <= proposed <= each for proposed, accepted in prophet.learned)


def steps(engine: EngineCore) -> list[StepOutput]:
    outputs = []
    while engine.has_work:
        outputs.append(engine.step())
        engine.scheduler.check_integrity()
    return outputs


def test_right_drafts_save_steps_and_wrong_ones_are_counted() -> None:
    engine, prophet = prophetic([4, 2, 0])
    add(engine, prophet, "a", [5, 6, 7], max_tokens=14)
    outputs = steps(engine)
    assert [len(output.deltas[0].token_ids) for output in outputs] == [1, 5, 3, 1, 4]
    assert [(o.stats.drafted, o.stats.accepted) for o in outputs] == [
        ([], []),
        ([4], [4]),
        ([4], [2]),
        ([4], [0]),
        ([3], [3]),  # the answer ends with the token behind the last draft
    ]
    assert prophet.learned == [(4, 4), (4, 2), (4, 0), (3, 3)]


def test_nothing_is_drawn_behind_a_token_that_ends_the_answer() -> None:
    answer = expected_answer([5, 6], 6)
    engine, prophet = prophetic([4])
    add(engine, prophet, "a", [5, 6], max_tokens=20, stop_token_ids=[answer[3]])
    outputs = steps(engine)
    assert [output.deltas[0].token_ids for output in outputs] == [answer[:1], answer[1:4]]
    assert outputs[-1].deltas[0].finish_reason == "stop"
    assert outputs[-1].stats.drafted == [2]


def test_drafts_take_only_what_a_step_has_left() -> None:
    engine, prophet = prophetic([9], max_num_batched_tokens=8, max_num_seqs=8)
    for name in "abc":
        add(engine, prophet, name, [5, 6], max_tokens=4)
    engine.step()  # all three prompts
    add(engine, prophet, "d", [8] * 4, max_tokens=4)
    output = engine.step()
    assert output.stats.num_prompt_tokens == 4  # three decodes and the prompt go first
    assert output.stats.drafted == [1]
    answer = tokens([*output.deltas[-1:], *drain(engine)["d"]])
    assert answer == expected_answer([8] * 4, 4)


def test_all_who_decode_get_their_share_of_the_drafts() -> None:
    engine, prophet = prophetic([9], step_tokens=10)
    for name in "abcd":
        add(engine, prophet, name, [5, 6], max_tokens=20)
    engine.step()
    assert engine.step().stats.drafted == [1, 1, 2, 2]


def test_a_step_that_is_busy_gets_no_drafts() -> None:
    engine, prophet = prophetic([9], step_tokens=4)
    for name in "abcd":
        add(engine, prophet, name, [5, 6], max_tokens=2 if name == "d" else 9)
    stats = [output.stats for output in steps(engine)]
    assert stats[1].drafted == []  # four decode
    assert stats[2].drafted == [1]


def test_the_drafter_is_told_what_steps_of_answers_took() -> None:
    engine, prophet = prophetic([4], max_num_batched_tokens=16)
    add(engine, prophet, "a", [5, 6], max_tokens=8)
    engine.step()
    add(engine, prophet, "b", [7] * 4, max_tokens=8)
    engine.step()
    assert prophet.steps == [], "these had prompts"
    steps(engine)
    assert prophet.steps
    assert all(1 < num_tokens <= 10 and 0 <= seconds < 1 for num_tokens, seconds in prophet.steps)


def test_drafts_never_cost_anybody_their_memory() -> None:
    engine, prophet = prophetic([9], num_blocks=4)
    add(engine, prophet, "a", [5] * 3, max_tokens=5)
    add(engine, prophet, "b", [6] * 3, max_tokens=5)
    answers = drain(engine)
    assert engine.scheduler.counters.preemptions == 0
    assert tokens(answers["a"]) == expected_answer([5] * 3, 5)
    assert tokens(answers["b"]) == expected_answer([6] * 3, 5)


def test_without_the_setting_nothing_is_guessed() -> None:
    engine = core()
    engine.add(message("a", [5, 6] * 6, max_tokens=12))
    assert not any(output.stats.drafted for output in steps(engine))


def test_ngrams_guess_where_the_fake_runner_repeats_itself() -> None:
    """Its vocabulary of one token makes it say the same for ever."""
    engine = create_core(
        FakeRunner(answer_vocab=range(100, 101)),
        CacheSettings(),
        SchedulerSettings(speculative="ngram"),
    )
    engine.add(message("a", [5], max_tokens=60))
    outputs = steps(engine)
    assert [t for o in outputs for t in o.deltas[0].token_ids] == [100] * 60
    assert len(outputs) < 20
    assert sum(map(sum, (o.stats.accepted for o in outputs))) > 40


def test_it_excludes_planning_ahead() -> None:
    with pytest.raises(ConfigError, match="--speculative") as error:
        core(speculative="ngram", async_scheduling=True)
    assert error.value.param == "speculative"


def test_the_fewest_words_are_no_more_than_the_most() -> None:
    with pytest.raises(ConfigError, match=r"--prompt-lookup-min 5 is more than .* 2"):
        core(speculative="ngram", prompt_lookup_min=5)
