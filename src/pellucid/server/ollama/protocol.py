"""Ollama's API: what clients may send, and what they receive.

Fields are Ollama's (https://github.com/ollama/ollama/blob/main/docs/api.md). A null means the
default. An unset field of an answer is left out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from pellucid.server.protocol import Body, FunctionTool, Int32, Int64, Name, TokenId, ToolName

KeepAlive = int | float | str  # seconds, or a duration such as "5m"; below 0: for ever
Format = Literal["", "json"] | dict[str, Any]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tools = Annotated[list[FunctionTool], Meta(max_length=128)]


# ---- requests


class ModelNamed(Body, kw_only=True):
    """Any body with a model in it."""

    asked: Annotated[str, Meta(min_length=1)] = msgspec.field(name="model")  # as answers repeat it

    @property
    def model(self) -> str:
        """The name under which it is served: `latest` is the only tag of each."""
        return self.asked.removesuffix(":latest")


class OllamaOptions(Body):
    """How the answer is generated. `translate.py` says what becomes of each."""

    num_predict: Int32 | None = None
    num_ctx: Int32 | None = None
    temperature: float | None = None
    top_k: Int32 | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Int32 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # Where and how fast the model runs is the server's: accepted, without effect on any answer.
    draft_num_predict: Int32 | None = None
    low_vram: bool | None = None
    main_gpu: Int32 | None = None
    num_batch: Int32 | None = None
    num_gpu: Int32 | None = None
    num_thread: Int32 | None = None
    numa: bool | None = None
    use_mlock: bool | None = None
    use_mmap: bool | None = None
    # Belong to what is refused unless it is off (see `neutral.py`): then they say nothing.
    mirostat_eta: float | None = None
    mirostat_tau: float | None = None
    num_keep: Int32 | None = None  # of a context that is shifted


class Computed(ModelNamed):
    """What all share that the model computes something for."""

    options: OllamaOptions | None = None
    keep_alive: KeepAlive | None = None


class Answered(Computed):
    """What chat and generate share."""

    stream: Annotated[bool | None, Meta(description="True by default.")] = None
    format: Format | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    truncate: bool | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not False


class OllamaFunction(Body, kw_only=True):
    name: ToolName
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    index: Count | None = None


class OllamaToolCall(Body, kw_only=True):
    function: OllamaFunction
    id: Name | None = None
    type: Literal["function"] | None = None


class OllamaMessage(Body, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class OllamaChat(Answered):
    """Body of POST /api/chat. Without messages it loads the model, or unloads it."""

    messages: list[OllamaMessage] | None = None
    tools: Tools | None = None


class OllamaGenerate(Answered):
    """Body of POST /api/generate. Without a prompt it loads the model, or unloads it."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: Annotated[
        list[TokenId] | None, Meta(description="Of an earlier answer, which this one follows.")
    ] = None


class OllamaPull(ModelNamed):
    """Body of POST /api/pull."""

    stream: bool | None = None
    insecure: bool | None = None


class OllamaShow(ModelNamed):
    """Body of POST /api/show."""

    verbose: bool | None = None


# ---- answers


class OllamaLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[OllamaLogprob] | UnsetType = UNSET


class AnswerFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any]


class AnswerCall(msgspec.Struct):
    id: str
    function: AnswerFunction


class OllamaAnswerMessage(msgspec.Struct):
    content: str = ""
    role: Literal["assistant"] = "assistant"
    thinking: str | UnsetType = UNSET
    tool_calls: list[AnswerCall] | UnsetType = UNSET


class AnswerPart(msgspec.Struct, kw_only=True):
    """A whole answer, or a line of a stream. The last line has what follows `done`."""

    model: str
    created_at: datetime
    done: bool = False
    done_reason: str | UnsetType = UNSET
    logprobs: list[OllamaLogprob] | UnsetType = UNSET
    # Durations are nanoseconds; those of a cached answer, which took none, are unset.
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class OllamaChatAnswer(AnswerPart):
    message: OllamaAnswerMessage


class OllamaGenerateAnswer(AnswerPart):
    response: str
    thinking: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


class OllamaStatus(msgspec.Struct):
    status: str


class OllamaDetails(msgspec.Struct, kw_only=True):
    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(msgspec.Struct, kw_only=True):
    name: str
    model: str
    modified_at: datetime
    size: int  # bytes of its files
    digest: str
    details: OllamaDetails


class OllamaTags(msgspec.Struct):
    models: list[OllamaModel]


class OllamaRunning(msgspec.Struct, kw_only=True):
    name: str
    model: str
    size: int  # bytes of weights, KV pool and the process
    size_vram: int  # of these, on a GPU
    digest: str
    details: OllamaDetails
    expires_at: datetime
    context_length: int


class OllamaProcesses(msgspec.Struct):
    models: list[OllamaRunning]


class OllamaShown(msgspec.Struct, kw_only=True):
    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: datetime


class OllamaVersion(msgspec.Struct):
    version: str


SCHEMAS: tuple[type[msgspec.Struct], ...] = (
    OllamaChat,
    OllamaGenerate,
    OllamaPull,
    OllamaShow,
    OllamaChatAnswer,
    OllamaGenerateAnswer,
    OllamaStatus,
    OllamaTags,
    OllamaProcesses,
    OllamaShown,
    OllamaVersion,
)
