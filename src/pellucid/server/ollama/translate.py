"""From Ollama's requests to those that the server answers."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pellucid.server import protocol
from pellucid.server.ollama.protocol import (
    Answered,
    Computed,
    OllamaChat,
    OllamaGenerate,
    OllamaMessage,
    OllamaOptions,
    OllamaToolCall,
)
from pellucid.server.own_names import compiled
from pellucid.server.params import invalid
from pellucid.server.service import Service

# Ollama's, where they are not OpenAI's; docs/modelfile.mdx of its repository lists them. There is
# no penalty among them since its pull request 17679.
DEFAULTS: dict[str, float | int] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
RANDOM_SEED = -1
FOR_EVER = -1.0  # seconds
CENTURY = 100 * 365.25 * 86400.0  # clocks and dates have an end

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([+-]?)((?:\d{1,9}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h))+)")
_STEP = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")

_OPTIONS = {
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "stop", "seed")},
    **{name: name for name in ("presence_penalty", "frequency_penalty")},
    "repeat_penalty": "repetition_penalty",
}
_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

CHAT_NAMES = compiled(
    {
        **{rf"^{ours}\b": f"options.{theirs}" for theirs, ours in _OPTIONS.items()},
        r"\bmax_tokens\b": "options.num_predict",
        r"\bresponse_format(\.json_schema\.schema)?\b": "format",
        r"(\bmessages\[\d+\])\.reasoning\b": r"\1.thinking",
    }
)
GENERATE_NAMES = (*CHAT_NAMES, *compiled({r"^logprobs\b": "top_logprobs"}))


def chat_request(service: Service, body: OllamaChat) -> protocol.ChatRequest:
    """Raises BadRequest naming the field, as all functions here."""
    return protocol.ChatRequest(
        messages=[_message(message) for message in body.messages or ()],
        tools=body.tools or None,
        **_conversing(service, body),
    )


def generate_request(service: Service, body: OllamaGenerate) -> protocol.ChatRequest:
    """A prompt that goes through the model's chat template."""
    messages = [protocol.Message(role="user", content=body.prompt)]
    if body.system:
        messages.insert(0, protocol.Message(role="system", content=body.system))
    return protocol.ChatRequest(messages=messages, **_conversing(service, body))


def raw_request(service: Service, body: OllamaGenerate) -> protocol.CompletionRequest:
    """A prompt that the model gets as it is."""
    for name in ("system", "context", "think"):
        if getattr(body, name):
            raise invalid(name, "cannot be combined with raw: the prompt is taken as it is")
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs to be true")
    return protocol.CompletionRequest(
        prompt=body.prompt or "",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **_sampling(service, body),
    )


def window(service: Service, body: Computed) -> int:
    """Tokens that prompt and answer may have together. Raises BadRequest."""
    wanted = (body.options or OllamaOptions()).num_ctx
    if wanted is None:
        return service.max_model_len
    if not 1 <= wanted <= service.max_model_len:
        raise invalid(
            "options.num_ctx",
            f"must be from 1 to {service.max_model_len}, the length that is served; got {wanted}",
        )
    return wanted


def answer_limit(body: Answered, room: int) -> int:
    """Most tokens of an answer for which the context has `room`."""
    wanted = (body.options or OllamaOptions()).num_predict
    if wanted in (None, -1, -2):  # until it ends, or the context does
        return room
    if wanted < 1:
        raise invalid("options.num_predict", f"must be -1, -2 or at least 1, got {wanted}")
    return min(wanted, room)


def keep_alive_seconds(value: int | float | str | None) -> float | None:
    """For how long a model stays loaded; below 0: for ever. None: as the server is set."""
    if isinstance(value, str):
        value = _duration(value)
    if value is None or 0 <= value <= CENTURY:
        return value
    return FOR_EVER


# ---- inside


def _duration(text: str) -> float:
    """Seconds of what Go calls a duration: "1h30m", "-500ms"."""
    written = _DURATION.fullmatch(text)
    if written is None:
        raise invalid("keep_alive", f"must be seconds or a duration such as 5m, got {text!r:.40}")
    seconds = sum(float(count) * _UNITS[unit] for count, unit in _STEP.findall(written[2]))
    return -seconds if written[1] == "-" else seconds


def _conversing(service: Service, body: Answered) -> dict[str, Any]:
    return {
        **_sampling(service, body),
        **_thinking(service, body.think),
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
    }


def _sampling(service: Service, body: Answered) -> dict[str, Any]:
    options = body.options or OllamaOptions()
    fields: dict[str, Any] = dict(DEFAULTS)
    for theirs, ours in _OPTIONS.items():
        if (value := getattr(options, theirs)) is not None:
            fields[ours] = value
    if fields.get("seed") == RANDOM_SEED:
        del fields["seed"]
    _limit_penalties(service, options.repeat_last_n, fields)
    return {**fields, "response_format": _form(body.format), "stream": body.streams}


def _limit_penalties(service: Service, last: int | None, fields: dict[str, Any]) -> None:
    """Penalties are for the whole context; a window is honoured where it is that or nothing."""
    asked = [name for name, neutral in _PENALTIES.items() if fields.get(name, neutral) != neutral]
    if last == 0:
        for name in asked:
            del fields[name]
    elif last is None or last == -1 or (last > 0 and not asked):
        return
    elif last < service.max_model_len:
        raise invalid(
            "options.repeat_last_n",
            "must be -1 (penalties are for the whole context), 0 (there are none) or at least "
            f"{service.max_model_len}, the length that is served; got {last}",
        )


def _form(wanted: str | dict[str, Any] | None) -> protocol.ResponseFormat | None:
    if isinstance(wanted, dict):
        return protocol.JsonSchemaFormat(json_schema=protocol.NamedSchema(schema=wanted))
    return protocol.JsonObjectFormat() if wanted == "json" else None


def _thinking(service: Service, think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, str):
        raise invalid("think", "must be true or false: how much is thought cannot be chosen")
    if think and not tells_thoughts(service):
        raise invalid("think", f"is not supported: {service.model_name} has no thoughts")
    has_switch = service.llm.text.chat_template.can_think
    switch = {"enable_thinking": think} if has_switch else None
    return {"chat_template_kwargs": switch, "include_reasoning": think}


def tells_thoughts(service: Service) -> bool:
    """Whether the model's thoughts are known apart from its answers."""
    return service.config.reasoning_parser != "none"


def _message(message: OllamaMessage) -> protocol.Message:
    calls = [_call(call) for call in message.tool_calls or ()]
    return protocol.Message(
        role=message.role,
        content=message.content if calls else message.content or "",
        name=message.tool_name,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
        reasoning=message.thinking,
    )


def _call(call: OllamaToolCall) -> protocol.MessageToolCall:
    arguments = msgspec.json.encode(call.function.arguments).decode()
    function = protocol.FunctionCall(name=call.function.name, arguments=arguments)
    return protocol.MessageToolCall(function=function, id=call.id)
