"""Prices that do not follow the clock."""

from __future__ import annotations

from pellucid.spec.drafter import Drafter
from pellucid.spec.either import Either
from pellucid.spec.length import StepTimes


class FixedTimes(StepTimes):
    def learn(self, num_tokens: int, seconds: float) -> None:
        """What tests do takes as long as it takes."""


def cheap(drafter: Drafter | None) -> Either:
    """Prompt lookup and a draft model, whose guesses shall pay: of two alike none would."""
    assert isinstance(drafter, Either)
    drafter.lookup.times = FixedTimes({1: 1.0})  # type: ignore[attr-defined]
    drafter.model.times = FixedTimes({1: 1.0}, {1: 0.05})  # type: ignore[attr-defined]
    return drafter
