"""The length of a guess, against steps that are played out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.spec.length import FIRST_ACCEPTANCE, Acceptance, best_length

CHANCES = st.floats(0.0, 1.0)


def tokens_per_time(acceptance: float, cost: float, length: int) -> float:
    """Over all ways that a guess of this length can turn out."""
    chances = [acceptance**k * (1.0 - acceptance) for k in range(length)] + [acceptance**length]
    tokens = sum(chance * (right + 1) for right, chance in enumerate(chances))
    return tokens / (1.0 + length * cost)


@given(CHANCES, st.floats(0.001, 2.0), st.integers(0, 32))
def test_no_other_length_is_better(acceptance: float, cost: float, most: int) -> None:
    chosen = best_length(acceptance, cost, most)
    assert 0 <= chosen <= most
    best = max(tokens_per_time(acceptance, cost, length) for length in range(most + 1))
    assert tokens_per_time(acceptance, cost, chosen) >= best * (1 - 1e-9)


def test_what_is_always_right_is_guessed_as_long_as_may_be() -> None:
    assert best_length(1.0, 0.3, 6) == 6
    assert best_length(0.2, 0.3, 6) == 0  # a guess costs more than it brings
    assert best_length(1.0, 1.2, 6) == 0


@given(CHANCES)
def test_acceptance_comes_near_the_share_of_right_guesses(share: float) -> None:
    acceptance, mean, right = Acceptance(), 0.0, 0.0
    for _ in range(400):
        right += share
        is_right = right >= 1.0
        right -= is_right
        acceptance.learn(1, int(is_right))
        mean += 0.05 * (acceptance.value - mean)
    assert abs(mean - share) < 0.1


def test_only_the_first_wrong_guess_counts_against_it() -> None:
    one, many = Acceptance(), Acceptance()
    one.learn(1, 0)
    many.learn(6, 0)
    assert one.value == many.value < FIRST_ACCEPTANCE


def test_who_was_wrong_is_tried_again_some_day() -> None:
    acceptance = Acceptance()
    for _ in range(40):
        acceptance.learn(1, 0)
    steps = 0
    while best_length(acceptance.value, 0.3, 6) == 0:
        acceptance.forget()
        steps += 1
    assert 20 < steps < 200
