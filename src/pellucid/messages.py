"""The only objects that cross between the front end and the engine, in both directions.

Encoded as msgpack arrays by msgspec: no pickle, nothing executable, unknown tags refused. Times are
`time.monotonic()` seconds, which both processes of one machine share. Token ids of a prompt travel
as little-endian int32 bytes; everything a step produced for all its requests is one message.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from pellucid.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "timeout", "error"]
Pooling = Literal["last", "mean"]  # of a prompt's final hidden states: the last one, or their mean


class _Message(msgspec.Struct, array_like=True, kw_only=True, omit_defaults=True):
    """Positional on the wire; defaults at the tail are left out."""


# ---- front end -> engine


class AddRequest(_Message, tag="add"):
    """One sequence to generate. `n` answers are `n` of these, made by the front end.

    With `pooling` nothing is generated: the request ends with a vector when its prompt is computed.
    """

    request_id: str
    prompt: bytes  # see pack_tokens
    sampling: SamplingParams
    arrival_time: float
    deadline: float | None = None
    priority: int = 0  # smaller goes first, as in vLLM
    user: str | None = None  # whom fair-share charges
    cache_salt: str | None = None  # only equal salts share prefix blocks
    pooling: Pooling | None = None
    adapter: int | None = None  # number of a LoRA adapter that was loaded


class Abort(_Message, tag="abort"):
    """Stop these requests and free their blocks; unknown ids are ignored."""

    request_ids: list[str]


class Observe(_Message, tag="observe"):
    """How many listen to the events of steps (`engine/events.py`), and to which of them.

    Each of these brings a snapshot with the next step.
    """

    num_listeners: int
    detail: bool = False  # ids of blocks
    tokens: bool = False  # generated token ids


class Vocabulary(_Message, tag="vocabulary"):
    """What each token spells: told once, before the first request with a grammar."""

    spelling: bytes  # of all tokens, end to end
    lengths: bytes  # of each in bytes, as int32; see pack_tokens
    special_ids: list[int]  # tokens that are no text

    def tokens(self) -> list[bytes]:
        """The bytes of each token, by id."""
        ends = np.cumsum(unpack_tokens(self.lengths), dtype=np.int64).tolist()
        return [self.spelling[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


class LoadAdapter(_Message, tag="load_adapter"):
    """Read a LoRA adapter. The next step's `adapters` tell what came of it."""

    adapter: int  # number under which requests will name it; never used twice
    name: str
    path: str


class UnloadAdapter(_Message, tag="unload_adapter"):
    """No more requests for an adapter; it is forgotten when those that have it are done."""

    adapter: int


Command = AddRequest | Abort | Observe | Vocabulary | LoadAdapter | UnloadAdapter


# ---- engine -> front end


class EngineInfo(_Message, tag="ready"):
    """Sent once, when the engine can take requests."""

    model: str
    architecture: str
    dtype: str
    device: str
    kernels: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    num_kv_blocks: int
    block_size: int
    kv_block_bytes: int = 0
    kv_dtype: str = "none"
    weight_bytes: int = 0
    num_parameters: int = 0
    expert_weight_bytes: int = 0  # of weight_bytes, those of experts
    active_experts: float = 1.0  # share of the experts that work on one token
    pid: int = 0  # of the process that computes
    hidden_size: int = 0  # of the vectors that pooling gives
    process_bytes: int = 0  # its memory at the start, weights included but no KV; 0: not known
    speculative: str = "none"  # what guesses tokens: "ngram", "draft"
    draft_model: str = ""  # kv_block_bytes counts its keys and values, too
    draft_weight_bytes: int = 0
    draft_cost: float = 0.0  # time of a guess and its check, as a part of what a token takes
    tensor_parallel_size: int = 1  # processes that share the weights; sizes are those of all

    def bytes_read(self, tokens: float) -> float:
        """What a step of so many tokens reads of the weights, if each chooses experts at random."""
        untouched: float = (1 - self.active_experts) ** tokens
        return self.weight_bytes - untouched * self.expert_weight_bytes


class TokenLogprobs(_Message):
    """The log probability of one token, and the likeliest alternatives, best first."""

    token_id: int
    logprob: float
    rank: int  # 1 is the likeliest
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class RequestTimes(_Message):
    """When a request reached each point of its life; None for those it has not."""

    arrival: float
    scheduled: float | None = None  # first step it took part in
    first_token: float | None = None
    finished: float | None = None
    num_preemptions: int = 0


class TokenDelta(_Message):
    """What one step brought one request."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the stop_token_ids member that ended it; never EOS
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # whole prompt, with the first token
    times: RequestTimes | None = None  # with the first token, and when finished
    error: str | None = None  # with finish_reason "error"
    embedding: bytes | None = None  # [hidden_size] little-endian float32, of a request that pools


class StepStats(_Message):
    """The engine's state after one step, and what the step did."""

    step: int
    time: float
    num_running: int
    num_waiting: int
    kv_blocks_used: int  # held by requests; cached blocks that nobody holds are free
    num_prompt_tokens: int = 0  # prompt tokens computed in this step
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of these, found
    schedule_seconds: float = 0.0
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    num_deferred: int = 0  # of num_waiting, for a prefix that is being computed
    # Of each request for which tokens were guessed: how many, and how many of these were right.
    drafted: list[int] = []
    accepted: list[int] = []
    draft_seconds: float = 0.0  # spent on guessing
    # Names of the LoRA adapters that requests have.
    running_adapters: list[str] = []
    waiting_adapters: list[str] = []


class AdapterOutcome(msgspec.Struct, array_like=True, omit_defaults=True):
    """What came of a `LoadAdapter`."""

    adapter: int
    digest: bytes = b""  # of its numbers
    rank: int = 0
    num_parameters: int = 0
    error: str | None = None  # why it was not loaded


class StepOutput(_Message, tag="step"):
    """One step, for all its requests."""

    deltas: list[TokenDelta]
    stats: StepStats
    events: bytes = b""  # an encoded `events.StepEvents`, for whoever decodes it; see Observe
    adapters: list[AdapterOutcome] = []  # since the step before


class EngineFailed(_Message, tag="failed"):
    """The engine's last words; `kind` tells a bad model or setting from a crash."""

    message: str
    kind: Literal["model", "config", "crash"] = "crash"


Event = EngineInfo | StepOutput | EngineFailed


def pack_tokens(token_ids: list[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    return np.asarray(token_ids, dtype="<i4").tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """Inverse of `pack_tokens`."""
    ids: list[int] = np.frombuffer(packed, dtype="<i4").tolist()
    return ids
