"""A request is a list of tokens with a counter.

`num_computed_tokens` says how many of `token_ids` have their K/V in the cache. Each step the
scheduler hands out tokens until computed catches up with known; the step that reaches the last
known token yields the next one. Prefill, chunked prefill, a prefix-cache hit and the return from a
preemption are all this one case.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from pellucid.messages import (
    AddRequest,
    FinishReason,
    Pooling,
    RequestTimes,
    TokenDelta,
    TokenLogprobs,
    unpack_tokens,
)
from pellucid.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pellucid.engine.adapters import Adapter
    from pellucid.grammar.compiler import Grammar
    from pellucid.runner.base import Chunk


class Status(enum.Enum):
    WAITING = "waiting"  # new, or preempted and to be computed again
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """One sequence on its way through the engine."""

    __slots__ = (
        "adapter",
        "arrival_time",
        "block_hashes",
        "block_table",
        "cache_salt",
        "deadline",
        "finish_reason",
        "grammar",
        "is_ready",
        "max_total_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_named_blocks",
        "num_prompt_tokens",
        "pooling",
        "priority",
        "prompt_logprobs",
        "request_id",
        "sampling",
        "status",
        "stop_ids",
        "stop_token_id",
        "times",
        "token_ids",
        "under_way",
        "user",
    )

    def __init__(
        self,
        message: AddRequest,
        *,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        adapter: Adapter | None = None,
    ) -> None:
        self.request_id = message.request_id
        self.token_ids = unpack_tokens(message.prompt)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.under_way: Chunk | None = None  # its share of a step whose result is not there yet
        self.num_cached_tokens = 0  # of the prompt, at first admission
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []  # of full blocks, computed or not; grows with tokens
        self.num_named_blocks = 0  # of block_table, findable by their hash
        self.sampling: SamplingParams = message.sampling
        self.is_ready = message.sampling.grammar is None  # else once `grammar` is compiled
        self.grammar: Grammar | None = None
        self.pooling: Pooling | None = message.pooling
        self.adapter = adapter
        self.priority = message.priority
        self.user = message.user
        self.cache_salt = message.cache_salt
        self.arrival_time = message.arrival_time
        self.deadline = message.deadline
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_token_id: int | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.times = RequestTimes(arrival=message.arrival_time)
        budget = message.sampling.max_tokens
        room = 0 if message.pooling else max_model_len - self.num_prompt_tokens
        self.max_total_tokens = self.num_prompt_tokens + (
            room if budget is None else min(budget, room)
        )
        eos = frozenset[int]() if message.sampling.ignore_eos else eos_token_ids
        self.stop_ids = eos | frozenset(message.sampling.stop_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_every_position(self) -> bool:
        """What is asked of each token of the prompt is not kept with its K/V."""
        return self.sampling.prompt_logprobs is not None or self.pooling == "mean"

    @property
    def next_start(self) -> int:
        """Where the next chunk begins: behind what is computed, or is being computed."""
        chunk = self.under_way
        return self.num_computed_tokens if chunk is None else chunk.start + chunk.num_tokens

    @property
    def num_expected_tokens(self) -> int:
        """The tokens, and the one that the step under way will bring."""
        chunk = self.under_way
        return len(self.token_ids) + (chunk is not None and chunk.samples)

    @property
    def is_ending(self) -> bool:
        """The step under way is its last, whatever token that brings."""
        if self.under_way is None:
            return False
        expected = self.num_expected_tokens
        is_full = expected > len(self.token_ids) and expected >= self.max_total_tokens
        return is_full or self.next_start == expected

    @property
    def is_prefilling(self) -> bool:
        """More than the next token is left to compute, or nothing was generated yet."""
        known = self.num_expected_tokens
        return self.next_start < known - 1 or known == self.num_prompt_tokens

    def append(self, token_id: int) -> bool:
        """Take a sampled token; return whether the request has come to its end."""
        self.token_ids.append(token_id)
        if token_id in self.stop_ids and self.num_output_tokens > self.sampling.min_tokens:
            self.finish_reason = "stop"
            if token_id in self.sampling.stop_token_ids:
                self.stop_token_id = token_id
        elif len(self.token_ids) >= self.max_total_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def delta(self, token_ids: list[int], error: str | None = None) -> TokenDelta:
        """What the front end is told: new tokens, and the end if this is it."""
        return TokenDelta(
            request_id=self.request_id,
            token_ids=token_ids,
            finish_reason=self.finish_reason,
            stop_token_id=self.stop_token_id,
            num_cached_tokens=self.num_cached_tokens,
            times=self.times if self.finish_reason is not None else None,
            error=error,
        )

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.value}, "
            f"{self.num_computed_tokens}/{self.num_tokens} computed, "
            f"{len(self.block_table)} blocks)"
        )
