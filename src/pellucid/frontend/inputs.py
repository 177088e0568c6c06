"""From what a caller asks to what the engine is told: text becomes token ids, and is checked.

A request that leaves here can be run. Whatever cannot is refused at once with a `BadRequest` that
names the field and the limit, so that nothing impossible ever waits in the engine's queue.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

import msgspec

from pellucid.errors import BadRequest
from pellucid.frontend.structured import GrammarChecker
from pellucid.messages import AddRequest, EngineInfo, Pooling, pack_tokens
from pellucid.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pellucid.frontend.adapters import Adapter
    from pellucid.frontend.tokenizer import Tokenizer

INLINE_CHARS = 2000  # tokenised on the event loop in about a millisecond; longer goes to a thread
MAX_BAD_WORD_CHARS = 256
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


class RequestOptions(TypedDict, total=False):
    """What a caller may add to a prompt and its sampling parameters; all of it is optional."""

    request_id: str | None  # drawn when absent
    priority: int  # smaller goes first
    user: str | None  # whom fair-share charges
    cache_salt: str | None  # only requests with equal salts share prefix blocks
    timeout: float | None  # seconds; the configured request_timeout is an upper limit
    truncate_prompt_tokens: int | None  # keep the prompt's last tokens; -1: as many as fit
    add_special_tokens: bool  # let the tokenizer put BOS before a text, as by default
    prompt_field: str  # what errors about the prompt call it, "prompt" by default
    structured_field: str  # the same for structured_outputs
    pooling: Pooling | None  # a vector of the prompt instead of answers to it
    adapter: Adapter | None  # one of `AsyncLLM.adapters`, which changes the model for the request


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A checked request, and the sequences it becomes: one per answer."""

    request_id: str
    prompt: str | None  # None when the caller gave token ids
    prompt_token_ids: list[int]
    params: SamplingParams
    sequences: list[AddRequest]


class InputProcessor:
    """Tokenises and checks requests for one engine.

    `request_timeout` is the longest that a request may take, in seconds; `math.inf` sets no limit.
    """

    def __init__(self, tokenizer: Tokenizer, info: EngineInfo, request_timeout: float) -> None:
        self.tokenizer = tokenizer
        self.grammars = GrammarChecker(tokenizer, info)
        # A sequence must also fit into the KV pool, all alone.
        self.max_model_len = min(info.max_model_len, info.num_kv_blocks * info.block_size)
        self.vocab_size = info.vocab_size
        self.request_timeout = request_timeout

    async def prepare(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        user: str | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
        truncate_prompt_tokens: int | None = None,
        add_special_tokens: bool = True,
        prompt_field: str = "prompt",
        structured_field: str = "structured_outputs",
        pooling: Pooling | None = None,
        adapter: Adapter | None = None,
    ) -> PreparedRequest:
        """Tokenise, check and split into one sequence per answer; see `RequestOptions`.

        Raises BadRequest for whatever is wrong; `param` names the field.
        """
        arrival = time.monotonic()
        _check_envelope(priority, cache_salt, timeout)
        self._check_params(params)
        text = prompt if isinstance(prompt, str) else None
        if isinstance(prompt, str):
            ids = await self.tokenize(
                prompt, field=prompt_field, add_special_tokens=add_special_tokens
            )
        else:
            ids = list(prompt)
            self._check_ids(ids, prompt_field)
        room = 0 if pooling else params.max_tokens or 1  # that the prompt leaves
        if truncate_prompt_tokens is not None:
            ids = self._truncate(ids, truncate_prompt_tokens, room)
        self._check_length(len(ids), params, prompt_field, pooling)
        if (wanted := params.grammar or params.structured_outputs) is not None:
            grammar = await self.grammars.check(wanted, structured_field)
            params = msgspec.structs.replace(params, structured_outputs=None, grammar=grammar)
        request_id = request_id or uuid.uuid4().hex
        template = AddRequest(
            request_id=request_id,
            prompt=pack_tokens(ids),
            sampling=params,
            arrival_time=arrival,
            deadline=self._deadline(arrival, timeout),
            priority=priority,
            user=user,
            cache_salt=cache_salt,
            pooling=pooling,
            adapter=None if adapter is None else adapter.number,
        )
        sequences = [template]
        if pooling is None:
            sequences = self._sequences(template, room=self.max_model_len - len(ids))
        return PreparedRequest(request_id, text, ids, params, sequences)

    async def tokenize(
        self, text: str, *, field: str = "prompt", add_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of `text`; a long text is tokenised in a thread.

        Raises:
            BadRequest: `text` is not valid Unicode, or so long that no split into tokens fits.
        """
        # A token stands for at most `longest_token` characters, so a longer text cannot fit.
        if len(text) > self.max_model_len and len(text) > self.max_model_len * self.longest_token:
            raise BadRequest(
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"{field} has {len(text)} characters, which cannot fit.",
                param=field,
                code="context_length_exceeded",
            )
        if len(text) <= INLINE_CHARS:
            return self._encode(text, field, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, field, add_special_tokens)

    @cached_property
    def longest_token(self) -> int:
        """Most bytes, and so at least the most characters, that one token stands for."""
        token_bytes = self.tokenizer.token_bytes
        return max(len(token_bytes(i)) for i in range(self.tokenizer.vocab_size))

    def _encode(self, text: str, field: str, add_special_tokens: bool) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except BadRequest as error:
            error.param = field
            raise

    def _check_params(self, params: SamplingParams) -> None:
        params.check_vocab(self.vocab_size)
        for name, count in (
            ("logprobs", params.logprobs),
            ("prompt_logprobs", params.prompt_logprobs),
        ):
            if count is not None and count > self.vocab_size:
                raise _invalid(
                    name, f"must not exceed the vocabulary ({self.vocab_size}), got {count}"
                )

    def _check_ids(self, ids: list[int], field: str) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise _invalid(
                field,
                f"has token id {wrong}, outside the vocabulary (0 to {self.vocab_size - 1})",
            )

    def _truncate(self, ids: list[int], limit: int, room: int) -> list[int]:
        if limit != -1 and limit < 1:
            raise _invalid(
                "truncate_prompt_tokens", f"must be -1 (what fits) or at least 1, got {limit}"
            )
        if limit == -1:
            limit = max(1, self.max_model_len - room)
        return ids[-limit:]

    def _check_length(
        self, num_tokens: int, params: SamplingParams, field: str, pooling: Pooling | None
    ) -> None:
        if num_tokens == 0:
            raise _invalid(field, "must hold at least one token")
        limit = f"This model's maximum context length is {self.max_model_len} tokens. However, "
        if pooling is not None:
            if num_tokens > self.max_model_len:
                raise BadRequest(
                    f"{limit}{field} has {num_tokens} tokens.",
                    param=field,
                    code="context_length_exceeded",
                )
            return
        if num_tokens >= self.max_model_len:
            raise BadRequest(
                f"{limit}{field} has {num_tokens} tokens, and an answer needs at least one more.",
                param=field,
                code="context_length_exceeded",
            )
        if num_tokens + (params.max_tokens or 0) > self.max_model_len:
            raise BadRequest(
                f"{limit}{num_tokens + (params.max_tokens or 0)} were requested: {num_tokens} in "
                f"{field} and {params.max_tokens} as max_tokens.",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _deadline(self, arrival: float, timeout: float | None) -> float | None:
        seconds = min(self.request_timeout, math.inf if timeout is None else timeout)
        return None if math.isinf(seconds) else arrival + seconds

    def _sequences(self, template: AddRequest, room: int) -> list[AddRequest]:
        """One message per answer; answer i samples with seed + i."""
        params = template.sampling
        seed = secrets.randbits(62) if params.seed is None else params.seed
        banned = self._tokenize_bad_words(params.bad_words)
        return [
            msgspec.structs.replace(
                template,
                request_id=f"{template.request_id}-{i}" if params.n > 1 else template.request_id,
                sampling=msgspec.structs.replace(
                    params,
                    n=1,
                    max_tokens=params.max_tokens or room,
                    seed=_wrap_int64(seed + i),
                    bad_words_token_ids=banned,
                    # The prompt is the same for all answers: one computes its logprobs.
                    prompt_logprobs=params.prompt_logprobs if i == 0 else None,
                ),
            )
            for i in range(params.n)
        ]

    def _tokenize_bad_words(self, words: list[str]) -> list[list[int]]:
        """Each word as it is tokenised at the start of a text and after a space."""
        banned: list[list[int]] = []
        for word in words:
            if len(word) > MAX_BAD_WORD_CHARS:
                raise _invalid(
                    "bad_words",
                    f"must have at most {MAX_BAD_WORD_CHARS} characters each, got {len(word)}",
                )
            for variant in (word, " " + word.lstrip()):
                ids = self._encode(variant, "bad_words", add_special_tokens=False)
                if ids and ids not in banned:
                    banned.append(ids)
        return banned


def _invalid(param: str, problem: str) -> BadRequest:
    return BadRequest(f"{param} {problem}", param=param, code="invalid_value")


def _check_envelope(priority: int, cache_salt: str | None, timeout: float | None) -> None:
    if not INT64_MIN <= priority <= INT64_MAX:
        raise _invalid("priority", f"must fit in 64 bits, got {priority}")
    if cache_salt == "":
        raise _invalid("cache_salt", "must not be empty")
    if timeout is not None and not timeout > 0.0:  # NaN fails too
        raise _invalid("timeout", f"must be above 0 seconds, got {timeout}")


def _wrap_int64(value: int) -> int:
    return (value - INT64_MIN) % (1 << 64) + INT64_MIN
