"""Several drafters, of whom each request's next tokens are guessed by whoever promises most.

A text that repeats something is guessed best by who has read it, what is new by a small model. What
either promises is tokens per time, with its own chances and costs, so the promises compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.spec.drafter import Drafter, Wanted
from pellucid.spec.length import Offer


class BestOf:
    """Implements `Drafter`. Of equal promises the first drafter's counts."""

    def __init__(self, *drafters: Drafter) -> None:
        self.drafters = drafters
        self._chosen: dict[str, Drafter] = {}  # whose offer each request took last

    def offer(self, wanted: Wanted, num_decoding: int) -> Offer:
        # All are asked each time: that is how they follow the text.
        offers = [drafter.offer(wanted, num_decoding) for drafter in self.drafters]
        best = max(range(len(offers)), key=lambda i: offers[i].rate)
        self._chosen[wanted.request_id] = self.drafters[best]
        return offers[best]

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        proposed: dict[str, list[int]] = {}
        for drafter in self.drafters:
            own = [each for each in wanted if self._chosen[each.request_id] is drafter]
            if own:
                names = (each.request_id for each in own)
                proposed.update(zip(names, drafter.propose(own), strict=True))
        return [proposed[each.request_id] for each in wanted]

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        if request_id in self._chosen:
            self._chosen[request_id].learn(request_id, num_proposed, num_accepted)

    def took(self, num_tokens: int, seconds: float) -> None:
        for drafter in self.drafters:
            drafter.took(num_tokens, seconds)

    def forget(self, request_id: str) -> None:
        self._chosen.pop(request_id, None)
        for drafter in self.drafters:
            drafter.forget(request_id)
