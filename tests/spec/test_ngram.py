"""Prompt lookup against a search that is written out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.sampling_params import SamplingParams
from pellucid.spec.drafter import Wanted
from pellucid.spec.ngram import NgramDrafter


def guess(drafter: NgramDrafter, name: str, tokens: list[int], most: int) -> list[int]:
    count = drafter.length(name, tokens, most, 1)
    if count == 0:
        return []
    (drafts,) = drafter.propose([Wanted(name, tokens, 1, SamplingParams(), [], [], count)])
    assert len(drafts) == count
    return drafts


def searched(tokens: list[int], shortest: int, longest: int, most: int) -> list[int]:
    """The same by comparing lists; what is not there yet is what was guessed before it."""
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                grown = list(tokens)
                for i in range(most):
                    grown.append(grown[end + i])
                return grown[len(tokens) :]
    return []


# Few distinct tokens, among them some whose bytes look like the end and the start of others.
TOKENS = st.lists(st.sampled_from([1, 2, 256, 65536, 1 << 24, 0x01000001]), max_size=40)


@given(TOKENS, st.integers(1, 4), st.integers(0, 3), st.integers(1, 8))
def test_it_finds_what_a_search_finds(
    tokens: list[int], shortest: int, more: int, most: int
) -> None:
    drafter = NgramDrafter(shortest, shortest + more)
    assert guess(drafter, "a", tokens, most) == searched(tokens, shortest, shortest + more, most)


@given(TOKENS, st.integers(1, 39))
def test_it_follows_a_text_that_grows(tokens: list[int], cut: int) -> None:
    drafter = NgramDrafter(1, 3)
    guess(drafter, "a", tokens[:cut], 4)
    guess(drafter, "b", list(reversed(tokens)), 4)
    assert guess(drafter, "a", tokens, 4) == guess(NgramDrafter(1, 3), "a", tokens, 4)


def test_trust_is_lost_and_earned() -> None:
    drafter = NgramDrafter(1, 1)
    text = [5, 6, 7, 8, 9, 10, 11, 12, 5]
    assert guess(drafter, "a", text, 6) == [6, 7, 8, 9, 10, 11]
    drafter.learn("a", 6, 0)
    assert guess(drafter, "a", text, 6) == [6]
    drafter.learn("a", 1, 1)
    assert guess(drafter, "a", text, 6) == [6, 7]
    drafter.learn("a", 2, 2)
    assert guess(drafter, "a", text, 6) == [6, 7, 8, 9]
    drafter.learn("a", 4, 1)
    assert guess(drafter, "a", text, 6) == [6, 7]
    drafter.forget("a")
    assert len(guess(drafter, "a", text, 6)) == 6


def test_who_is_unknown_may_leave() -> None:
    drafter = NgramDrafter(1, 1)
    drafter.forget("nobody")
    drafter.learn("nobody", 2, 1)
