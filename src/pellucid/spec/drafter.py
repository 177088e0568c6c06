"""What guesses tokens, and what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pellucid.sampling_params import SamplingParams
from pellucid.spec.length import Offer


@dataclass(slots=True)
class Wanted:
    """A request whose next `count` tokens are to be guessed. The sequences are the engine's own."""

    request_id: str
    token_ids: Sequence[int]  # prompt and answer so far
    num_prompt_tokens: int
    sampling: SamplingParams
    block_table: Sequence[int]  # KV blocks, for the guesses, too
    # Of the first blocks that are full of known tokens: equal names, equal tokens up to there.
    block_names: Sequence[bytes]
    count: int
    room: int  # the most tokens that can come yet: the answer's limit
    num_decoding: int  # requests in this step that decode, this one among them
    num_running: int  # those whose prompts are still being read, too


class Drafter(Protocol):
    """Guesses. Called between steps, which wait for it."""

    def offer(self, wanted: Wanted) -> Offer:
        """How many tokens it would guess: up to `count`, perhaps none.

        Of one request the tokens only ever grow. There are no blocks for the guesses yet.
        """
        ...

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """For each of them up to `count` tokens, which `offer` has just said or less.

        None for any of them, if what was offered to each does not pay for all together.
        """
        ...

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        """How many of its last guesses were right."""
        ...

    def took(self, num_tokens: int, seconds: float) -> None:
        """What a step of so many tokens took, guessing aside; all of them answers or guesses."""
        ...

    def forget(self, request_id: str) -> None:
        """The request has left, or gave up its blocks; it may be unknown."""
        ...
