"""What steps take, by a clock that only the executors move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pellucid.runner import step_times
from pellucid.runner.batch import Ints, StepRows
from pellucid.runner.step_times import MEASURED_ROWS, measured
from pellucid.spec.length import StepTimes

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Stopped:
    """An executor whose step of n tokens takes fixed + n * each seconds; the first, longer."""

    def __init__(self, clock: Clock, fixed: float, each: float, *, finds_likeliest: bool) -> None:
        self.clock, self.fixed, self.each = clock, fixed, each
        self.finds_likeliest = finds_likeliest
        self.sizes: list[int] = []

    def likeliest(self, step: StepRows, wanted: Ints) -> Any:
        if not self.finds_likeliest:
            return None
        return self._run(step, wanted)

    def launch(self, step: StepRows, wanted: Ints) -> Any:
        assert not self.finds_likeliest
        return self._run(step, wanted)

    def _run(self, step: StepRows, wanted: Ints) -> Stopped:
        num_tokens = len(step.token_ids)
        assert wanted.tolist() == step.positions.tolist() == list(range(num_tokens))
        assert step.seq_lens.tolist() == [num_tokens]
        assert len(set(step.token_ids.tolist())) == min(num_tokens, 100)
        assert step.block_tables.size * 16 >= num_tokens
        self.clock.now += self.fixed + num_tokens * self.each + (0.0 if self.sizes else 10.0)
        self.sizes.append(num_tokens)
        return self

    def logits(self, begin: int, end: int) -> Any:
        return np.zeros((end - begin, 1), np.float32)


def priced(model: Any, draft: Any = None, *, room: int = 4096) -> StepTimes:
    return measured(model, draft, room=room, vocab_size=100, block_size=16, device=CPU)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(step_times, "time", clock)
    return clock


@pytest.mark.parametrize("finds_likeliest", [True, False])
def test_prices_are_those_of_the_steps(clock: Clock, finds_likeliest: bool) -> None:
    model = Stopped(clock, 0.05, 0.001, finds_likeliest=finds_likeliest)
    times = priced(model)
    assert set(model.sizes) == set(MEASURED_ROWS)
    assert times.ratio(1, 6) == pytest.approx(0.057 / 0.051)
    assert times.ratio(30, 5) == pytest.approx(0.23 / 0.08)


def test_a_draft_models_steps_count_once_for_each_guess(clock: Clock) -> None:
    model = Stopped(clock, 0.05, 0.001, finds_likeliest=True)
    draft = Stopped(clock, 0.01, 0.0, finds_likeliest=False)
    times = priced(model, draft)
    assert model.sizes == draft.sizes
    assert times.ratio(1, 3) == pytest.approx((0.054 + 0.03) / 0.051)


def test_no_step_is_larger_than_there_is_room(clock: Clock) -> None:
    model = Stopped(clock, 0.05, 0.001, finds_likeliest=True)
    priced(model, room=10)
    assert set(model.sizes) == {1, 2, 4, 8}


def test_a_start_does_not_wait_for_the_largest_steps_of_a_large_model(clock: Clock) -> None:
    model = Stopped(clock, 0.1, 0.02, finds_likeliest=True)
    times = priced(model)
    assert max(model.sizes) == 8  # the first that takes a quarter of a second
    assert times.ratio(16, 1) == pytest.approx((0.1 + 32 * 0.02) / (0.1 + 16 * 0.02))
