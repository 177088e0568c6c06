"""What clients receive, in OpenAI's shapes. An unset field is left out; a null one is sent."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from pellucid.messages import FinishReason

StopReason = str | int | None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int  # up to the end of the thoughts, their markers included


class Usage(msgspec.Struct):
    """`prompt_tokens` counts a prompt once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # of chats


# ---- log probabilities


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry per token; the first of a prompt has no log probability."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []  # characters from the start of the choice's text


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # per prompt token, by token id


# ---- chat


ChatFinishReason = FinishReason | Literal["tool_calls"]


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str  # JSON text, as the model wrote it


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(msgspec.Struct):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the same, by its older name


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    finish_reason: ChatFinishReason | None
    logprobs: ChatLogprobs | None = None
    stop_reason: StopReason = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    """A piece of a call; the first one of each has its id and name."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the same, by its older name


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    finish_reason: ChatFinishReason | None = None
    logprobs: ChatLogprobs | None = None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


# ---- completions


class CompletionChoice(msgspec.Struct):
    """A choice of a whole answer or of a chunk; only the last chunk has a `finish_reason`."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextCompletion(msgspec.Struct, kw_only=True):
    """A whole completion, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


# ---- the simple streams


class GenerateToken(msgspec.Struct):
    token: int
    text: str


class GenerateEnd(msgspec.Struct):
    finish_reason: FinishReason
    usage: Usage
    stop_reason: StopReason = None


class Generated(msgspec.Struct):
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    stop_reason: StopReason = None


# ---- everything else


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pellucid"
    root: str  # alias, repository or file that it comes from
    parent: str | None = None  # the model that this LoRA adapter is for
    status: Literal["unloaded", "loading", "loaded", "failed"]
    max_model_len: int | None  # null while it is not loaded


class ModelList(msgspec.Struct):
    data: list[Model]
    object: Literal["list"] = "list"


class Deleted(msgspec.Struct):
    """What is served no more."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str


class AppliedTemplate(msgspec.Struct):
    prompt: str


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


class Version(msgspec.Struct):
    version: str


class Load(msgspec.Struct):
    """GET /metrics with `Accept: application/json`."""

    active_streams: int
    tokens_per_sec: float
    cpu_percent: float
    ram_percent: float


class ServerLoad(msgspec.Struct):
    """GET /load."""

    server_load: int  # requests that are being answered


class Index(msgspec.Struct):
    """GET /."""

    model: str
    version: str
    openapi: str = "/openapi.json"
    metrics: str = "/metrics"
    health: str = "/health"
