"""Prompt lookup beside a draft model: each request's next tokens are guessed by who promises more.

A text that repeats something is guessed best by who has read it, what is new by a small model. What
either promises is tokens per time, with its own chances and costs, so the promises compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pellucid.spec.drafter import Drafter, Wanted
from pellucid.spec.length import Offer


class Either:
    """Implements `Drafter`. What the model then does not guess, as it would not pay, is looked up.

    Args:
        lookup: costs nothing, and keeps what it offers.
        model: may propose less.
    """

    def __init__(self, lookup: Drafter, model: Drafter) -> None:
        self.lookup, self.model = lookup, model
        self._offers: dict[str, tuple[Offer, Offer]] = {}  # of both, by request
        self._sources: dict[str, Drafter] = {}  # whose guess a request had last

    def offer(self, wanted: Wanted) -> Offer:
        # Both are asked each time: that is how they follow the text.
        offers = self.lookup.offer(wanted), self.model.offer(wanted)
        self._offers[wanted.request_id] = offers
        return max(offers, key=lambda offer: offer.rate)  # the lookup's, of equals

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        guesses = {each.request_id: list[int]() for each in wanted}
        dear = [each for each in wanted if self._prefers_model(each)]
        self._take(guesses, self.model, dear)
        free = [self._lookup_of(each) for each in wanted if not guesses[each.request_id]]
        self._take(guesses, self.lookup, [each for each in free if each.count])
        return [guesses[each.request_id] for each in wanted]

    def _prefers_model(self, wanted: Wanted) -> bool:
        found, guessed = self._offers[wanted.request_id]
        return guessed.rate > found.rate

    def _lookup_of(self, wanted: Wanted) -> Wanted:
        found, _ = self._offers[wanted.request_id]
        return replace(wanted, count=min(wanted.count, found.length))

    def _take(
        self, guesses: dict[str, list[int]], source: Drafter, wanted: Sequence[Wanted]
    ) -> None:
        if wanted:
            for each, found in zip(wanted, source.propose(wanted), strict=True):
                guesses[each.request_id] = found
                self._sources[each.request_id] = source

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        if request_id in self._sources:
            self._sources[request_id].learn(request_id, num_proposed, num_accepted)

    def took(self, num_tokens: int, seconds: float) -> None:
        self.lookup.took(num_tokens, seconds)
        self.model.took(num_tokens, seconds)

    def forget(self, request_id: str) -> None:
        self._offers.pop(request_id, None)
        self._sources.pop(request_id, None)
        self.lookup.forget(request_id)
        self.model.forget(request_id)
