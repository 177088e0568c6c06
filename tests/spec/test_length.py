"""The length of a guess, against steps that are played out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.spec.length import FIRST_ACCEPTANCE, Acceptance, StepTimes, best_offer

CHANCES = st.floats(0.0, 1.0)


def tokens_per_time(acceptances: list[float], ratio: float) -> float:
    """Over all ways that a guess of this length can turn out."""
    wrong = [prod(acceptances[:k]) * (1.0 - each) for k, each in enumerate(acceptances)]
    chances = [*wrong, prod(acceptances)]
    return sum(chance * (right + 1) for right, chance in enumerate(chances)) / ratio


@given(st.lists(st.tuples(CHANCES, st.floats(0.01, 2.0)), max_size=12))
def test_no_other_length_is_better(tokens: list[tuple[float, float]]) -> None:
    acceptances = [acceptance for acceptance, _ in tokens]
    ratios = list(accumulate((cost for _, cost in tokens), initial=1.0))
    chosen, promised = best_offer(acceptances, lambda k: ratios[k])
    rates = [tokens_per_time(acceptances[:k], ratio) for k, ratio in enumerate(ratios)]
    assert rates[chosen] >= max(rates) * (1 - 1e-9)
    assert promised == pytest.approx(rates[chosen])


def proportional(cost: float) -> Callable[[int], float]:
    return lambda length: 1.0 + cost * length


def test_what_is_always_right_is_guessed_as_long_as_may_be() -> None:
    assert best_offer([1.0] * 6, proportional(0.3)).length == 6
    assert best_offer([0.2] * 6, proportional(0.3)).length == 0  # a guess costs more than it brings
    assert best_offer([1.0] * 6, proportional(1.2)).length == 0
    assert best_offer([], proportional(0.3)).length == 0


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
    while best_offer([acceptance.value] * 6, proportional(0.3)).length == 0:
        acceptance.forget()
        steps += 1
    assert 20 < steps < 200


def test_what_a_step_takes_is_told_between_and_beyond_what_was_measured() -> None:
    times = StepTimes({1: 10.0, 4: 13.0, 8: 15.0, 16: 29.0}, {1: 2.0, 4: 5.0})
    assert times.ratio(1, 0) == 1.0
    assert times.ratio(1, 1) == pytest.approx((11 + 2) / 10)
    assert times.ratio(1, 5) == pytest.approx((14 + 5 * 2) / 10)
    assert times.ratio(2, 3) == pytest.approx((15 + 3 * 3) / 11)
    assert times.ratio(4, 3) == pytest.approx((29 + 3 * 5) / 13)
    assert times.ratio(6, 3) == pytest.approx((29 + 8 * 14 / 8 + 3 * 7) / 14)
    assert StepTimes({1: 4.0}, {1: 1.0}).ratio(3, 2) == pytest.approx(1.5)


@given(
    st.lists(st.floats(0.0, 3.0), min_size=7, max_size=7),
    st.floats(0.1, 10.0),
    st.floats(0.01, 1.0),
    st.sets(st.integers(0, 6)),
)
def test_what_disturbed_a_measurement_is_seen_where_it_contradicts_the_others(
    noise: list[float], fixed: float, each: float, disturbed: set[int]
) -> None:
    rows = [1 << k for k in range(7)]
    true = {n: fixed + each * n for n in rows}
    found = {n: t * (1 + noise[k] * (k in disturbed)) for k, (n, t) in enumerate(true.items())}
    cleared = [StepTimes(found).ratio(1, n - 1) for n in rows]
    assert cleared == sorted(cleared), "more tokens take no less"
    per_token = [ratio / n for ratio, n in zip(cleared, rows, strict=True)]
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(per_token)), "nor more than in proportion"
    if not disturbed:
        assert cleared == [pytest.approx(t / true[1]) for t in true.values()]


def test_in_company_guesses_are_fewer() -> None:
    times = StepTimes({1: 10.0, 4: 11.0, 8: 13.0, 16: 25.0}, {1: 2.0, 4: 3.0})
    lengths = [best_offer([0.8] * 6, lambda k, n=n: times.ratio(n, k)).length for n in (1, 2, 4, 8)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


def test_what_steps_take_beside_their_tokens_is_learned() -> None:
    times = StepTimes({1: 10.0, 2: 20.0})
    assert times.ratio(1, 1) == 2.0
    for _ in range(100):
        times.learn(1, 15.0)
    assert times.ratio(1, 1) == pytest.approx(25 / 15, rel=1e-3)
    for _ in range(100):
        times.learn(2, 20.0)
    assert times.ratio(1, 1) == pytest.approx(2.0, rel=1e-3)


def test_steps_that_are_faster_than_those_that_were_measured_are_believed() -> None:
    """Or prices from a busy hour would leave no room for what steps take in addition."""
    busy, quiet = StepTimes({1: 20.0, 2: 38.0}), StepTimes({1: 10.0, 2: 19.0})
    for _ in range(200):
        busy.learn(1, 10.0)
    assert busy.ratio(1, 1) == pytest.approx(quiet.ratio(1, 1), rel=1e-3)
    for times in (busy, quiet):
        for _ in range(200):
            times.learn(1, 14.0)
    assert busy.ratio(1, 1) < 1.7
    assert busy.ratio(1, 1) == pytest.approx(quiet.ratio(1, 1), rel=1e-2)


def test_a_step_that_stalled_counts_as_one_that_took_twice_as_long() -> None:
    stalled, slow = StepTimes({1: 10.0, 2: 20.0}), StepTimes({1: 10.0, 2: 20.0})
    stalled.learn(1, 1e6)
    slow.learn(1, 20.0)
    assert stalled.ratio(1, 1) == slow.ratio(1, 1) > 1.0


def test_without_a_draft_model_guesses_cost_their_check() -> None:
    times = StepTimes({1: 10.0, 4: 13.0})
    assert times.ratio(1, 3) == pytest.approx(1.3)


def test_reading_costs_everybody_and_serves_one() -> None:
    times = StepTimes({1: 10.0, 4: 13.0}, {1: 2.0, 4: 5.0})
    assert times.reading(1, 1) == 0.0, "the last token is read with the first guess"
    assert times.reading(1, 11) == pytest.approx(10 / 10)
    assert times.reading(4, 11) == pytest.approx(4 * 10 / 13)
    assert StepTimes({1: 10.0}).reading(1, 11) == 0.0


def test_the_same_steps_without_a_draft_model() -> None:
    times = StepTimes({1: 10.0, 4: 13.0}, {1: 2.0})
    assert times.without_draft().ratio(1, 3) == StepTimes({1: 10.0, 4: 13.0}).ratio(1, 3)


@given(
    st.lists(st.tuples(st.integers(1, 6), CHANCES), min_size=1, max_size=6),
    st.integers(0, 6),
)
def test_guesses_are_cut_where_that_is_best_for_all(
    guesses: list[tuple[int, float]], others: int
) -> None:
    step, guess = (lambda rows: 10.0 + rows), (lambda rows: 2.0 + 0.5 * rows)
    times = StepTimes({n: step(n) for n in (1, 2)}, {n: guess(n) for n in (1, 2)})
    num_decoding = others + len(guesses)

    def rate(depth: int) -> float:
        cut = [(min(length, depth), chance) for length, chance in guesses]
        tokens = others + sum(tokens_per_time([chance] * length, 1.0) for length, chance in cut)
        seconds = step(num_decoding + sum(length for length, _ in cut))
        for each in range(1, depth + 1):
            rows = sum(length >= each for length, _ in cut)
            seconds += guess(rows) if rows else 0.0
        return tokens / seconds

    rates = [rate(depth) for depth in range(max(length for length, _ in guesses) + 1)]
    assert rates[times.best_depth(num_decoding, guesses)] >= max(rates) * (1 - 1e-9)


def test_few_who_share_a_guess_do_not_pay_for_it() -> None:
    times = StepTimes({1: 10.0, 2: 10.5}, {1: 3.0, 2: 3.1})
    assert times.best_depth(4, [(2, 0.8)] * 4) == 2
    assert times.best_depth(4, [(2, 0.8)]) == 0
    assert times.best_depth(1, [(2, 0.8)]) == 2
    assert times.best_depth(4, [(1, 0.8)] * 3 + [(6, 0.9)]) == 1, "nobody else goes deeper"
