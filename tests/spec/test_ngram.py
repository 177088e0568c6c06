"""Prompt lookup against a search that is written out."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.sampling_params import SamplingParams
from pellucid.spec import ngram
from pellucid.spec.drafter import Wanted
from pellucid.spec.length import StepTimes
from pellucid.spec.ngram import NEWS, READ_AT_ONCE, Experience, NgramDrafter


def asked(name: str, tokens: list[int], most: int) -> Wanted:
    return Wanted(name, tokens, 1, SamplingParams(), [], [], most, 99, 1, 1)


def guess(drafter: NgramDrafter, name: str, tokens: list[int], most: int) -> list[int]:
    wanted = asked(name, tokens, most)
    wanted.count = drafter.offer(wanted).length
    if wanted.count == 0:
        return []
    (drafts,) = drafter.propose([wanted])
    assert len(drafts) == wanted.count
    return drafts


def searched(tokens: list[int], shortest: int, longest: int) -> int:
    """The index behind the latest place where the last tokens stood, by comparing lists; or 0."""
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return end
    return 0


def followed(tokens: list[int], shortest: int, longest: int) -> int:
    """The same for a text that grew: a place that was found counts as long as it is right."""
    source = 0
    for end in range(1, len(tokens) + 1):
        if source and tokens[source] == tokens[end - 1]:
            source += 1
        else:
            source = searched(tokens[:end], shortest, longest)
    return source


def continued(tokens: list[int], source: int, most: int) -> list[int]:
    """What is not there yet is what was guessed before it."""
    grown = list(tokens)
    for i in range(most if source else 0):
        grown.append(grown[source + i])
    return grown[len(tokens) :]


TOKENS = st.lists(st.integers(1, 4), max_size=40)


@given(TOKENS, st.integers(1, 4), st.integers(0, 3), st.integers(1, 8), st.booleans())
def test_it_finds_what_a_search_finds(
    tokens: list[int], shortest: int, more: int, most: int, is_prompt: bool
) -> None:
    drafter = NgramDrafter(shortest, shortest + more)
    find = searched if is_prompt else followed
    with patch.object(ngram, "READ_AT_ONCE", 0 if is_prompt else len(tokens)):
        found = guess(drafter, "a", tokens, most)
    assert found == continued(tokens, find(tokens, shortest, shortest + more), most)


@given(TOKENS, st.integers(1, 39))
def test_it_follows_a_text_that_grows(tokens: list[int], cut: int) -> None:
    drafter = NgramDrafter(1, 3)
    guess(drafter, "a", tokens[:cut], 4)
    guess(drafter, "b", list(reversed(tokens)), 4)
    assert guess(drafter, "a", tokens, 4) == guess(NgramDrafter(1, 3), "a", tokens, 4)


def prices(cost: float) -> StepTimes:
    """A token more costs so much of what a step of one takes."""
    return StepTimes({1: 1.0, 2: 1.0 + cost})


def test_a_guess_is_as_long_as_pays() -> None:
    text = [5, 6, 7, 8, 9, 10, 11, 12, 5]
    lengths = [
        len(guess(NgramDrafter(1, 1, prices(cost)), "a", text, 6)) for cost in (0.0, 0.2, 0.9)
    ]
    assert lengths[0] == 6 > lengths[1] > 0 == lengths[2]


def test_a_text_that_agreed_for_long_is_believed_for_longer() -> None:
    drafter = NgramDrafter(2, 2, prices(0.8))
    said = list(range(40))
    lengths = [len(guess(drafter, "a", said + said[:end], 6)) for end in (2, 6, 12, 24)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0 < lengths[-1]


def test_a_place_is_left_where_the_text_goes_on_differently() -> None:
    drafter = NgramDrafter(1, 2)
    text = [1, 2, 3, 4, 9, 3, 5, 1, 2]
    assert guess(drafter, "a", text, 2) == [3, 4]
    assert guess(drafter, "a", [*text, 3], 2) == [4, 9]
    assert guess(drafter, "a", [*text, 3, 5], 2) == [1, 2]  # as behind "3 5" before
    assert guess(drafter, "a", [*text, 3, 5, 8], 2) == []


@given(st.lists(st.booleans(), min_size=300, max_size=300))
def test_experience_comes_near_the_share_that_was_right(rights: list[bool]) -> None:
    experience, known = Experience(), [0.75]
    for right in rights:
        experience.learn(3, right)
        known.append(known[-1] + NEWS * (right - known[-1]))
    assert experience.ahead(3, 1) == [pytest.approx(known[-1])]
    assert experience.ahead(2, 1) == Experience().ahead(2, 1), "of others nothing was learned"


def test_what_was_right_unasked_is_learned_too() -> None:
    """Where guesses are too dear to be made, it is still known when they would pay."""
    drafter = NgramDrafter(2, 2, prices(0.8))
    period = [3, 4, 5]
    for length in range(4, 400):
        drafter.offer(asked("a", (period * 200)[:length], 0))
    assert drafter.experience.ahead(40, 1) > Experience().ahead(40, 1)


def test_experience_is_of_all_requests() -> None:
    drafter = NgramDrafter(1, 1)
    before = drafter.experience.ahead(1, 1)
    for name in "abc":
        guess(drafter, name, [7, 8, 7], 1)
        guess(drafter, name, [7, 8, 7, 9], 1)
        drafter.forget(name)
    assert drafter.experience.ahead(1, 1) < before


def test_a_long_prompt_is_found_as_a_text_that_grew_to_it() -> None:
    tokens = [(k * k) % 97 for k in range(READ_AT_ONCE * 5)]
    for end in range(READ_AT_ONCE + 1, len(tokens), 41):
        slowly = NgramDrafter(2, 4)
        for length in range(1, end + 1):
            slowly.offer(asked("a", tokens[:length], 0))
        assert guess(slowly, "a", tokens[:end], 6) == guess(
            NgramDrafter(2, 4), "a", tokens[:end], 6
        )


def test_who_is_unknown_may_leave() -> None:
    drafter = NgramDrafter(1, 1)
    drafter.forget("nobody")
    drafter.learn("nobody", 2, 1)
