"""Speculation: a step that decodes a request also computes tokens that it may say next.

    token_ids  |---------- computed ----------|= last =|  drafts  |
                                              start               start + num_tokens

The logits behind the last token choose the next one, as ever. If that is the first draft, the
logits behind the draft choose the one after it, in the same step; and so on until a draft is wrong.
Each token is drawn from the same logits, with the same random number, as it would be without
drafts. So an answer does not change by a bit, greedy or not; only how many steps it takes does.

A wrong draft costs a row of a step, and the K/V it wrote is written again. A step of few rows waits
for memory, and a row more costs it little; one of many computes, and a row costs what a token does.
Hence steps are only filled up with drafts, to `speculative_step_tokens`, when everybody has their
share; and drafts never take somebody else's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Protocol

from pellucid.config import SchedulerSettings
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.request import Request
from pellucid.errors import ConfigError
from pellucid.runner.base import Chunk
from pellucid.spec.ngram import NgramDrafter


class Drafter(Protocol):
    """Guesses. Called between steps, so microseconds count."""

    def propose(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `token_ids`, which only ever grow; perhaps none."""
        ...

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        """How many of its last guesses were right."""
        ...

    def forget(self, request_id: str) -> None:
        """The request has left; it may be unknown."""
        ...


class Drafting:
    """Hands out what drafts may cost."""

    def __init__(self, drafter: Drafter, most_per_request: int, step_tokens: int) -> None:
        self.drafter = drafter
        self._most_per_request = most_per_request
        self._step_tokens = step_tokens

    @classmethod
    def from_settings(cls, settings: SchedulerSettings) -> Drafting | None:
        """None without speculation. Raises ConfigError."""
        if settings.speculative == "none":
            return None
        if settings.prompt_lookup_min > settings.prompt_lookup_max:
            raise ConfigError(
                f"--prompt-lookup-min {settings.prompt_lookup_min} is more than"
                f" --prompt-lookup-max {settings.prompt_lookup_max}",
                param="prompt_lookup_min",
            )
        drafter = NgramDrafter(settings.prompt_lookup_min, settings.prompt_lookup_max)
        return cls(drafter, settings.num_speculative_tokens, settings.speculative_step_tokens)

    def extend(
        self,
        chunks: Mapping[str, Chunk],
        running: Mapping[str, Request],
        kv: KVCacheManager,
        budget: int,
    ) -> None:
        """Put drafts into the chunks that decode; all together get `budget` tokens at most."""
        left = min(budget, self._step_tokens - sum(c.num_tokens for c in chunks.values()))
        if left <= 0:
            return
        decoding = [c for c in chunks.values() if c.samples and c.num_tokens == 1]
        for index, chunk in enumerate(decoding):
            if left == 0:
                return
            request = running[chunk.request_id]
            room = request.max_total_tokens - request.num_tokens - 1  # the last is never computed
            share = max(1, left // (len(decoding) - index))
            drafts = self._draft(request, min(share, room, self._most_per_request))
            blocks = kv.allocate(request, request.num_tokens + len(drafts)) if drafts else None
            if blocks is None:
                continue
            chunk.drafts = drafts
            chunk.num_tokens += len(drafts)
            chunk.new_block_ids = chunk.new_block_ids + blocks
            left -= len(drafts)

    def _draft(self, request: Request, most: int) -> list[int]:
        if most <= 0 or request.num_output_tokens == 0:
            return []
        drafts = self.drafter.propose(request.request_id, request.token_ids, most)
        # Nothing follows a token that ends the answer, and it needs no draft to come.
        return list(takewhile(lambda token: token not in request.stop_ids, drafts))
