"""Prices that do not follow the clock."""

from __future__ import annotations

from pellucid.spec.best_of import BestOf
from pellucid.spec.drafter import Drafter
from pellucid.spec.length import StepTimes


class FixedTimes(StepTimes):
    def learn(self, num_tokens: int, seconds: float) -> None:
        """What tests do takes as long as it takes."""


def cheap(drafter: Drafter | None) -> BestOf:
    """Prompt lookup and a draft model, whose guesses shall pay: of two alike none would."""
    assert isinstance(drafter, BestOf)
    lookup, model = drafter.drafters
    lookup.times = FixedTimes({1: 1.0})  # type: ignore[attr-defined]
    model.times = FixedTimes({1: 1.0}, {1: 0.05})  # type: ignore[attr-defined]
    return drafter
