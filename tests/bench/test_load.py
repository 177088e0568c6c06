from __future__ import annotations

import math

import numpy as np
import pytest

from pellucid.bench.load import arrival_times
from pellucid.bench.summary import summarize


def test_infinite_rate_sends_all_at_once() -> None:
    assert arrival_times(5, math.inf, 1.0, seed=0) == [0.0] * 5


@pytest.mark.parametrize(("burstiness", "variation"), [(0.25, 2.0), (1.0, 1.0), (100.0, 0.1)])
def test_gaps_have_the_rate_and_the_burstiness(burstiness: float, variation: float) -> None:
    times = np.array(arrival_times(20_000, 50.0, burstiness, seed=3))
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.06)
    # The coefficient of variation of a gamma distribution is shape ** -0.5; Poisson's gaps have 1.
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.06)


def test_arrivals_follow_from_the_seed() -> None:
    assert arrival_times(10, 5.0, 1.0, seed=1) == arrival_times(10, 5.0, 1.0, seed=1)
    assert arrival_times(10, 5.0, 1.0, seed=1) != arrival_times(10, 5.0, 1.0, seed=2)


def test_summary_of_known_samples() -> None:
    summary = summarize(range(101), scale=2.0)
    assert summary is not None
    assert (summary.count, summary.mean, summary.max) == (101, 100.0, 200.0)
    assert (summary.p50, summary.p95, summary.p99) == (100.0, 190.0, 198.0)
    assert summarize([]) is None
