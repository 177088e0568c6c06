"""Speculation: a step that decodes a request also computes tokens that it may say next.

    token_ids  |---------- computed ----------|= last =|  drafts  |
                                              start               start + num_tokens

The logits behind the last token choose the next one, as ever. If that is the first draft, the
logits behind the draft choose the one after it, in the same step; and so on until a draft is wrong.
Each token is drawn from the same logits, with the same random number, as it would be without
drafts. So an answer does not change by a bit, greedy or not; only how many steps it takes does.

A draft costs a row of a step, and what a wrong one wrote of K/V is written again. A step of few
rows waits for memory, and a row more costs it little; one of many computes, and a row costs almost
what a token does. How many drafts pay is for the drafter to say (`spec/length.py`), which knows how
likely they are right, and what steps take. Here they get what a step has left when everybody has
their share, up to `speculative_step_tokens`; and they never take somebody else's memory. Blocks
come first and guesses then, since a draft model (`runner/draft_model.py`) keeps its K/V in the very
blocks; all requests are guessed for at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import takewhile

from pellucid.config import SchedulerSettings
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.request import Request
from pellucid.errors import ConfigError
from pellucid.runner.base import Chunk
from pellucid.spec.drafter import Drafter, Wanted
from pellucid.spec.ngram import NgramDrafter


class Drafting:
    """Hands out what drafts may cost."""

    def __init__(self, drafter: Drafter, most_per_request: int, step_tokens: int) -> None:
        self.drafter = drafter
        self.seconds = 0.0  # that the step planned last spent on guessing
        self._most_per_request = most_per_request
        self._step_tokens = step_tokens

    @classmethod
    def from_settings(
        cls, settings: SchedulerSettings, drafter: Drafter | None = None
    ) -> Drafting | None:
        """None without speculation; `drafter` is the runner's, if any. Raises ConfigError."""
        shortest, longest = settings.prompt_lookup_min, settings.prompt_lookup_max
        if shortest > longest:
            raise ConfigError(
                f"--prompt-lookup-min {shortest} is more than --prompt-lookup-max {longest}",
                param="prompt_lookup_min",
            )
        if drafter is None and settings.speculative == "ngram":
            drafter = NgramDrafter(shortest, longest)
        if drafter is None and settings.speculative == "draft":
            raise ConfigError("--speculative draft is for --runner torch", param="speculative")
        if drafter is None or settings.speculative == "none":
            return None
        return cls(drafter, settings.num_speculative_tokens, settings.speculative_step_tokens)

    def extend(
        self,
        chunks: Mapping[str, Chunk],
        running: Mapping[str, Request],
        kv: KVCacheManager,
        budget: int,
    ) -> None:
        """Put drafts into the chunks that decode; all together get `budget` tokens at most."""
        self.seconds = 0.0
        left = min(budget, self._step_tokens - sum(c.num_tokens for c in chunks.values()))
        decoding = [c for c in chunks.values() if c.samples and c.num_tokens == 1]
        if left <= 0 or not decoding:
            return
        begin = time.monotonic()
        wanted: dict[str, Wanted] = {}
        for index, chunk in enumerate(decoding):
            if left == 0:
                break
            share = max(1, left // (len(decoding) - index))
            request = running[chunk.request_id]
            found = self._reserve(request, chunk, kv, share, len(decoding), len(running))
            if found is not None:
                wanted[chunk.request_id] = found
                left -= found.count
        if wanted:
            proposed = self.drafter.propose(list(wanted.values()))
            for name, drafts in zip(wanted, proposed, strict=True):
                _put(chunks[name], drafts, running[name])
        self.seconds = time.monotonic() - begin

    def took(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """What the step of these chunks took, planning and guessing included."""
        if chunks and all(c.samples and c.num_tokens == 1 + len(c.drafts) for c in chunks):
            self.drafter.took(sum(c.num_tokens for c in chunks), seconds - self.seconds)

    def _reserve(
        self,
        request: Request,
        chunk: Chunk,
        kv: KVCacheManager,
        share: int,
        num_decoding: int,
        num_running: int,
    ) -> Wanted | None:
        """Blocks for up to `share` guesses, if there are any to come, and blocks."""
        room = request.max_total_tokens - request.num_tokens - 1  # the last is never computed
        most = min(share, room, self._most_per_request)
        if most <= 0 or request.num_output_tokens == 0:
            return None
        wanted = Wanted(
            request.request_id,
            request.token_ids,
            request.num_prompt_tokens,
            request.sampling,
            request.block_table,
            request.block_hashes,
            count=most,
            room=room + 1,
            num_decoding=num_decoding,
            num_running=num_running,
        )
        wanted.count = count = self.drafter.offer(wanted).length
        blocks = kv.allocate(request, request.num_tokens + count) if count else None
        if blocks is None:
            return None
        chunk.new_block_ids = chunk.new_block_ids + blocks
        return wanted


def _put(chunk: Chunk, drafts: list[int], request: Request) -> None:
    # Nothing follows a token that ends the answer, and it needs no draft to come.
    chunk.drafts = list(takewhile(lambda token: token not in request.stop_ids, drafts))
    chunk.num_tokens += len(chunk.drafts)
