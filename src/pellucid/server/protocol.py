"""What clients may send: OpenAI's names, vLLM's where OpenAI has none, and a few of our own.

A null means the default. Ranges of sampling fields are `SamplingParams`' to check; here are types,
and bounds on what would otherwise not fit the wire. The schemas of `/openapi.json` come from these
structs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]

# One array type per union is what msgspec decodes; `prompts_of` sorts the four forms apart.
Prompt = str | list[str | TokenId | list[TokenId]]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Any request body."""


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Body):
    """What every generating route understands."""

    model: str | None = None
    n: Int32 | None = None
    max_tokens: Int32 | None = None
    min_tokens: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    seed: Int64 | None = None
    logit_bias: dict[Int32, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: Int32 | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    priority: Annotated[
        Int64 | None, Meta(description="Smaller goes first; needs the priority policy.")
    ] = None
    request_id: Name | None = None
    cache_salt: Annotated[
        Name | None, Meta(description="Only requests of equal salt share cached prefixes.")
    ] = None
    timeout: Annotated[
        float | None, Meta(description="Seconds after which the request ends with an error.")
    ] = None
    user: Name | None = None
    cache: Annotated[
        bool | None, Meta(description="false: neither look for nor keep a cached answer.")
    ] = None
    metadata: Annotated[
        dict[str, str] | None, Meta(description="The caller's own notes; not interpreted.")
    ] = None


class OpenAIFields(SamplingFields):
    """What chat and completions share beyond that."""

    echo: bool | None = None
    prompt_logprobs: Int32 | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class TextPart(Body, tag="text", tag_field="type"):
    text: str


class Message(Body, kw_only=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Name | None = None


class ChatRequest(OpenAIFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: Annotated[
        str | None, Meta(description="Short for messages with one message of the user.")
    ] = None
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None


class CompletionRequest(OpenAIFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Prompt
    best_of: Annotated[Int32 | None, Meta(description="Only n itself is supported.")] = None
    logprobs: Int32 | None = None


class GenerateRequest(SamplingFields, kw_only=True):
    """Body of POST /generate and POST /generate_stream."""

    prompt: str | list[TokenId]


class TokenizeRequest(Body):
    """Body of POST /tokenize: either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body, kw_only=True):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
