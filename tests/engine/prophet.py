"""A drafter that knows the answers, and errs where it is told to."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.spec.drafter import Wanted
from pellucid.spec.length import Offer


class Prophet:
    """Implements `Drafter`.

    `rights` says of one guess after the other how many tokens are right before the wrong ones.
    """

    def __init__(self, rights: Sequence[int], wrong: int = 1) -> None:
        self.rights = rights
        self.wrong = wrong
        self.texts: dict[str, list[int]] = {}  # prompts with their answers
        self.learned: list[tuple[int, int]] = []
        self.steps: list[tuple[int, float]] = []  # tokens and seconds
        self.num_guesses = 0
        self.ends: dict[str, int] = {}  # where each text has to end, as far as it was asked
        self.present: set[str] = set()

    def offer(self, wanted: Wanted) -> Offer:
        self.present.add(wanted.request_id)
        self.ends[wanted.request_id] = len(wanted.token_ids) + wanted.room
        return Offer(wanted.count, 1.0 + wanted.count)

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        return [self._guess(each) for each in wanted]

    def _guess(self, each: Wanted) -> list[int]:
        right = self.rights[self.num_guesses % len(self.rights)]
        self.num_guesses += 1
        known = len(each.token_ids)
        drafts = self.texts[each.request_id][known:][: min(each.count, right)]
        return drafts + [self.wrong] * (each.count - len(drafts))

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        self.learned.append((num_proposed, num_accepted))

    def took(self, num_tokens: int, seconds: float) -> None:
        self.steps.append((num_tokens, seconds))

    def forget(self, request_id: str) -> None:
        self.present.discard(request_id)
