"""Laws and spreads of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.lab.result import Law


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeats of one measurement: their median, and the least and the most."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Raises ValueError for no samples."""
    if not samples:
        raise ValueError("nothing was measured")
    return Spread(statistics.median(samples), min(samples), max(samples))


def power_law(name: str, x: Sequence[float], y: Sequence[float], *, of: tuple[str, str]) -> Law:
    """Fit y = factor * x ** exponent over log-log; `of` names x and y.

    Raises ValueError if fewer than two points are positive, or all x are the same.
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    if len({a for a, _ in pairs}) < 2:
        raise ValueError(f"{name}: a law needs two different points")
    log_x, log_y = np.log(np.array(pairs, dtype=np.float64)).T
    exponent, offset = np.polyfit(log_x, log_y, 1)
    left = float(np.square(log_y - (exponent * log_x + offset)).sum())
    total = float(np.square(log_y - log_y.mean()).sum())
    return Law(
        name=name,
        x=of[0],
        y=of[1],
        exponent=float(exponent),
        factor=float(np.exp(offset)),
        r2=1.0 if total == 0 else 1 - left / total,
        points=len(pairs),
    )


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the straight line through the points, by least squares."""
    rise, start = np.polyfit(np.asarray(x, np.float64), np.asarray(y, np.float64), 1)
    return float(start), float(rise)
