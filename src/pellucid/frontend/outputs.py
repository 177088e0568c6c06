"""What the front end hands to whoever asked: text, with the token ids it came from."""

from __future__ import annotations

from dataclasses import dataclass, field

from pellucid.messages import FinishReason, RequestTimes

Bytes = bytes  # Logprob has a field of that name, which hides the type from whoever decodes it


@dataclass(slots=True)
class Logprob:
    """One token with its log probability; `text` is the token alone, `bytes` its exact bytes."""

    token_id: int
    logprob: float
    text: str
    bytes: Bytes
    rank: int | None = None  # 1 is the likeliest; None for alternatives
    top: list[Logprob] = field(default_factory=list)


@dataclass(slots=True)
class Delta:
    """What became known of one answer since the last delta.

    Text may lag behind `token_ids`: half a character, or what may be the start of a stop string, is
    held back. The last delta has a `finish_reason` and everything that was held.
    """

    index: int  # which of n answers
    text: str
    token_ids: list[int]
    logprobs: list[Logprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that ended it
    times: RequestTimes | None = None  # on the last delta
    num_cached_tokens: int = 0
    prompt_logprobs: list[Logprob | None] | None = None  # on the first delta, if asked for
    error: str | None = None  # what went wrong, with finish_reason "error"
    embedding: Bytes | None = None  # of a request that pools; see `embedding.vector_of`


@dataclass(slots=True)
class Completion:
    """One finished answer."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: list[Logprob] | None = None
    times: RequestTimes | None = None
    error: str | None = None  # what went wrong, with finish_reason "error"
    embedding: Bytes | None = None


@dataclass(slots=True)
class RequestOutput:
    """A finished request with its `n` answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    num_cached_tokens: int = 0
    prompt_logprobs: list[Logprob | None] | None = None
