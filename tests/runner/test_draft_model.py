"""The draft model's own K/V: whatever happens to blocks, it says what it would say from scratch.

`CheckedDraftModel` compares each guess with that of a model that reads the whole text anew.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.runner.base import KVCapacity
from pellucid.runner.draft_model import FIRST_TO_COME, SAVED_BY_READING
from pellucid.runner.fake import FakeRunner, expected_answer
from pellucid.sampling_params import SamplingParams
from pellucid.spec.drafter import Wanted
from pellucid.spec.length import best_offer
from tests.engine.helpers import drain, message, tokens
from tests.runner.digest_draft import VOCAB, CheckedDraftModel
from tests.spec.fixed_times import FixedTimes


def make(num_blocks: int = 200, **fields: Any) -> CheckedDraftModel:
    return CheckedDraftModel(KVCapacity(num_blocks, 4, 8), max_num_seqs=8, **fields)


def serving(
    drafter: CheckedDraftModel, num_blocks: int, *, step_tokens: int = 24, **settings: Any
) -> EngineCore:
    caching = settings.pop("prefix_caching", True)
    return EngineCore(
        FakeRunner(num_blocks=num_blocks, block_size=4),
        CacheSettings(prefix_caching=caching),
        SchedulerSettings(**{"max_num_seqs": 8, **settings}),
        Drafting(drafter, 4, step_tokens),
    )


def asked(name: str, token_ids: list[int], blocks: list[int], **fields: Any) -> Wanted:
    fields = {
        "num_prompt_tokens": len(token_ids),
        "block_names": [],
        "count": 3,
        "room": 999,
        "num_decoding": 1,
        **fields,
    }
    fields.setdefault("num_running", fields["num_decoding"])
    params = SamplingParams(temperature=0.0)
    return Wanted(name, token_ids, sampling=params, block_table=blocks, **fields)


@given(
    prompts=st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=24), min_size=1, max_size=6),
    num_blocks=st.integers(12, 40),
    budget=st.integers(1, 24),
    caching=st.booleans(),
    max_rows=st.integers(4, 30),
)
def test_answers_and_guesses_are_right_in_any_company(
    prompts: list[list[int]], num_blocks: int, budget: int, caching: bool, max_rows: int
) -> None:
    drafter = make(num_blocks, max_rows=max_rows)
    engine = serving(
        drafter, num_blocks, max_num_batched_tokens=budget, prefix_caching=caching, max_num_seqs=4
    )
    for _ in range(2):  # the second time from the prefix cache, if there is one
        for i, prompt in enumerate(prompts):
            engine.add(message(f"r{i}", prompt, arrival=float(i), max_tokens=20))
        for i, deltas in drain(engine).items():
            assert tokens(deltas) == expected_answer(prompts[int(i[1:])], 20)
    assert not drafter.present


def test_who_is_preempted_is_guessed_for_again() -> None:
    drafter = make(16)
    engine = serving(drafter, 16)
    for i in range(4):
        engine.add(message(f"r{i}", [5 + i] * 6, arrival=float(i), max_tokens=24))
    before = drafter.num_guessed
    answers = drain(engine)
    assert engine.scheduler.counters.preemptions > 0
    assert drafter.num_guessed > before + 8
    for i in range(4):
        assert tokens(answers[f"r{i}"]) == expected_answer([5 + i] * 6, 24)


@pytest.mark.parametrize("length", [2, 4, 6])
def test_a_block_that_was_written_to_holds_its_text_no_more(length: int) -> None:
    """Block 0 was `a`'s, is written to by `b`, and comes back to who has the text of `a`."""
    drafter = make()
    a = [5, 6, 7, 8, 9, 10]
    drafter.propose([asked("a", a, [0, 1, 2], block_names=[b"a0"])])
    drafter.forget("a")
    drafter.propose([asked("b", [11] * length, [0, 3, 6])])
    drafter.forget("b")
    drafter.propose([asked("c", a, [0, 4, 5], block_names=[b"a0"])])
    assert drafter.num_guessed == 3


def test_a_text_that_has_not_grown_may_be_asked_for_again() -> None:
    drafter = make()
    for _ in range(2):
        drafter.propose([asked("a", [5, 6, 7, 8], [0, 1, 2])])
    assert (drafter.num_guessed, drafter.num_idle) == (2, 0)


def test_a_block_is_found_again_by_its_name() -> None:
    drafter = make()
    drafter.propose([asked("a", [5, 6, 7, 8, 9], [0, 1], block_names=[b"a0"])])
    positions = drafter.executor.positions
    drafter.propose([asked("b", [5, 6, 7, 8, 7], [0, 2], block_names=[b"a0"])])
    assert drafter.executor.positions - positions == 1 + 2  # one of the text, two guesses


def test_blocks_that_two_share_are_computed_by_one_of_them() -> None:
    drafter = make(max_rows=64)
    text, names = [5, 6, 7, 8] * 5, [b"0", b"1", b"2", b"3", b"4"]
    both = [
        asked("a", [*text, 5], [0, 1, 2, 3, 4, 5], block_names=names),
        asked("b", [*text, 6], [0, 1, 2, 3, 4, 6], block_names=names),
    ]
    assert [len(guesses) for guesses in drafter.propose(both)] == [3, 0]
    assert drafter.executor.positions == 21 + 2
    assert [len(guesses) for guesses in drafter.propose(both[1:])] == [3]
    assert drafter.executor.positions == 21 + 2 + 1 + 2


def test_a_prompt_that_many_share_is_computed_once() -> None:
    drafter = make(max_rows=500)
    engine = serving(drafter, 200)
    prompt = [5 + k % 9 for k in range(100)]
    for i in range(4):
        engine.add(message(f"r{i}", prompt, max_tokens=12, seed=i, temperature=1.0))
    drain(engine)
    assert drafter.num_guessed > 8
    assert drafter.executor.positions < 100 + 4 * 40


def test_nothing_is_computed_while_steps_are_full() -> None:
    drafter = make(max_rows=64)
    engine = serving(drafter, 200, step_tokens=3)
    for i in range(3):
        engine.add(message(f"r{i}", [5 + i] * 30, max_tokens=20 if i else 40))
    engine.add(message("vector", [9] * 40, pooling="mean"))
    for _ in range(15):
        engine.step()
    assert drafter.executor.positions == 0
    drain(engine)  # one is left alone
    assert drafter.num_guessed > 3


def test_a_long_text_is_caught_up_with_in_pieces() -> None:
    drafter = make(max_rows=8, wrong_every=1 << 70)
    text = [5 + k % 9 for k in range(30)]
    proposed = [drafter.propose([asked("a", text, list(range(9)))])[0] for _ in range(4)]
    assert [len(guesses) for guesses in proposed] == [0, 0, 0, 3]
    assert drafter.executor.positions == 30 + 2


def test_a_guess_ends_with_what_only_one_of_the_two_can_say() -> None:
    drafter = make(wrong_every=1)  # says 100, whatever was said before
    assert drafter.propose([asked("a", [5, 6], [0, 1])]) == [[100] * 3]
    drafter._num_sayable = 100
    assert drafter.propose([asked("b", [5, 6], [2, 3])]) == [[]]
    drafter._num_sayable = VOCAB
    assert drafter.propose([asked("c", [5, VOCAB], [4, 5])]) == [[]]


def test_guesses_end_where_its_context_does() -> None:
    drafter = make(max_model_len=20)
    texts = [asked("a", [5] * n, [], count=4) for n in (10, 17, 19, 20, 30)]
    lengths = [drafter.offer(each).length for each in texts]
    assert lengths == [4, 3, 1, 0, 0]
    engine = serving(drafter, 200)
    engine.add(message("a", [5] * 9, max_tokens=40))
    assert tokens(drain(engine)["a"]) == expected_answer([5] * 9, 40)
    assert drafter.num_guessed > 1


@pytest.mark.parametrize("wrong_every", [1, 1 << 70])
def test_who_guesses_wrong_guesses_less(wrong_every: int) -> None:
    drafter = make(wrong_every=wrong_every)
    engine = serving(drafter, 200)
    engine.add(message("a", [5] * 9, max_tokens=120))
    outputs = []
    while engine.has_work:
        outputs.append(engine.step().stats)
    drafted = sum(sum(stats.drafted) for stats in outputs)
    if wrong_every == 1:
        assert 4 < drafted < 60
    else:
        assert sum(sum(stats.accepted) for stats in outputs) == drafted > 80
        assert len(outputs) < 30
    spent = [stats.draft_seconds for stats in outputs]
    assert all((seconds > 0) >= bool(s.drafted) for seconds, s in zip(spent, outputs, strict=True))


def test_a_prompt_is_read_if_the_answer_should_save_as_much() -> None:
    drafter = make(max_model_len=20_000)
    drafter.times = FixedTimes({1: 1.0}, {1: 0.1, 2: 0.11})
    offer = best_offer([0.8] * 3, partial(drafter.times.ratio, 1))
    longest = []
    for num_said in (1, 20, 60):
        lengths = [
            n
            for n in range(1000, 10000, 100)
            if drafter.offer(asked("a", [5] * (n + num_said), [], num_prompt_tokens=n)).length
        ]
        longest.append(max(lengths))
    for most, num_said in zip(longest, (1, 20, 60), strict=True):
        saved = (num_said + FIRST_TO_COME) * (1.0 - 1.0 / offer.rate)
        assert abs(SAVED_BY_READING * 0.01 * (most + num_said - 1) - saved) <= 2.0


def test_a_prompt_that_is_there_already_need_not_be_read() -> None:
    prompt, blocks, names = [5] * 100, list(range(40)), [bytes([k]) for k in range(25)]
    drafter = make(max_rows=200)
    drafter.times = FixedTimes({1: 1.0}, {1: 0.1, 2: 0.2})
    each = asked("a", [*prompt, 7], blocks, block_names=names, num_decoding=4)
    assert drafter.offer(each).length == 0
    drafter.propose([asked("b", [*prompt, 6], blocks, block_names=names)])
    assert drafter.offer(each).length > 0


def test_in_company_only_shorter_prompts_are_read() -> None:
    """Everybody waits for it, and one of them gains."""
    drafter = make(max_model_len=2000)
    drafter.times = FixedTimes({1: 1.0}, {1: 0.1, 2: 0.11})
    read = {
        length: [
            drafter.offer(asked("a", [5] * length, [], num_running=n)).length > 0
            for n in (1, 2, 4, 8)
        ]
        for length in (20, 500)
    }
    assert read == {20: [True] * 4, 500: [True, True, False, False]}


def test_a_prompt_is_not_read_for_an_answer_that_has_to_end_soon() -> None:
    drafter = make()
    drafter.times = FixedTimes({1: 1.0}, {1: 0.1, 2: 0.11})
    offers = [drafter.offer(asked("a", [5] * 200, [], room=n)).length for n in (2, 40)]
    assert offers == [0, 3]


def test_who_is_alone_among_many_is_not_guessed_for() -> None:
    """All wait for a step of this model, which takes hardly longer for four than for one."""
    drafter = make(max_rows=64)
    drafter.times = FixedTimes({1: 1.0, 2: 1.01}, {1: 0.3, 2: 0.301})
    blocks = [[4 * k + i for i in range(4)] for k in range(4)]
    four = [asked(f"r{k}", [5 + k] * 6, blocks[k], num_decoding=4) for k in range(4)]
    assert all(drafter.offer(each).length for each in four), "it counts on the others"
    assert drafter.propose(four[:1]) == [[]]
    assert drafter.executor.positions == 0, "so the prompt is not read either"
    assert [len(guesses) for guesses in drafter.propose(four)] == [3] * 4


def test_nobody_goes_deeper_alone() -> None:
    drafter = make(max_rows=64)
    drafter.times = FixedTimes({1: 1.0, 2: 1.01}, {1: 0.3, 2: 0.301})
    blocks = [[4 * k + i for i in range(4)] for k in range(4)]
    counts = [1, 1, 1, 6]
    four = [
        asked(f"r{k}", [5 + k] * 6, blocks[k], count=counts[k], num_decoding=4) for k in range(4)
    ]
    assert [len(guesses) for guesses in drafter.propose(four)] == [1] * 4
    alone = asked("r9", [9] * 6, list(range(20, 24)), count=6)
    assert len(drafter.propose([alone])[0]) > 1
