"""From the messages of a request to what a chat template takes."""

from __future__ import annotations

from typing import Any

import msgspec

from pellucid.errors import BadRequest
from pellucid.server.params import invalid
from pellucid.server.protocol import ChatRequest, Message, TemplateFields
from pellucid.server.service import Service

# Whose a field of a message is; templates do not look for it with others.
_ROLE_OF = {
    "tool_calls": "assistant",
    "reasoning": "assistant",
    "reasoning_content": "assistant",
    "tool_call_id": "tool",
}
# The template's own arguments, which its variables from a request must not replace.
_RESERVED = frozenset({"add_generation_prompt", "continue_final_message", "messages", "tools"})


def conversation(body: ChatRequest) -> list[Message]:
    """The messages, or the bare prompt as the one message of a user.

    Raises:
        BadRequest: neither or both are given, or there is no message.
    """
    if body.prompt is not None:
        if body.messages is not None:
            raise invalid("prompt", "and messages exclude each other")
        return [Message(role="user", content=body.prompt)]
    if body.messages is None:
        raise BadRequest("messages is required", param="messages", code="missing_field")
    if not body.messages:
        raise invalid("messages", "must hold at least one message")
    check_messages(body.messages)
    return body.messages


def begun_answer(body: ChatRequest) -> str:
    """What the request has of the answer already. Raises BadRequest as `conversation` does."""
    last = conversation(body)[-1]
    return text_of(last) if body.continue_final_message and last.role == "assistant" else ""


def check_messages(messages: list[Message]) -> None:
    """Raises BadRequest for fields that do not suit their message's role, or each other."""
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        for field, role in _ROLE_OF.items():
            if getattr(message, field) and message.role != role:
                raise invalid(f"{path}.{field}", f"is the {role}'s, not the {message.role}'s")
        thoughts = {message.reasoning, message.reasoning_content} - {None}
        if len(thoughts) > 1:
            raise invalid(f"{path}.reasoning_content", "contradicts reasoning, its other name")
        if message.content is None and not message.tool_calls:
            raise BadRequest(
                f"{path}.content is required", param=f"{path}.content", code="missing_field"
            )
        for j, call in enumerate(message.tool_calls or ()):
            if not is_object(call.function.arguments):
                field = f"{path}.tool_calls[{j}].function.arguments"
                raise invalid(field, "must be the JSON text of an object")


def is_object(text: str) -> bool:
    """Whether arguments of a call are what a template can take."""
    try:
        return isinstance(msgspec.json.decode(text or "{}"), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Plain objects, as `ChatTemplate.render` takes them."""
    plain: list[dict[str, Any]] = msgspec.to_builtins(messages)
    for message in plain:
        # Templates know the older name only.
        if (thought := message.pop("reasoning", None)) is not None:
            message.setdefault("reasoning_content", thought)
        if message.get("tool_calls"):
            message.setdefault("content", None)
    return plain


def text_of(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(part.text for part in message.content)


def template_options(service: Service, body: ChatRequest | TemplateFields) -> dict[str, Any]:
    """Options of `ChatTemplate.render`.

    Raises:
        BadRequest: the options contradict each other, take a name that is reserved or means
            nothing to the template, or ask for thoughts that this model cannot have, or cannot
            leave.
    """
    if body.add_generation_prompt and body.continue_final_message:
        raise invalid("continue_final_message", "and add_generation_prompt exclude each other")
    variables = body.chat_template_kwargs or {}
    if taken := sorted(_RESERVED & variables.keys()):
        raise BadRequest(
            f"chat_template_kwargs must not set {taken[0]}",
            param=f"chat_template_kwargs.{taken[0]}",
            code="invalid_value",
        )
    known = service.llm.text.chat_template.variables
    for name, value in variables.items():
        if name not in known and value is not None and value is not False:
            problem = "is no variable of this model's chat template"
            raise invalid(f"chat_template_kwargs.{name}", problem)
    continues = bool(body.continue_final_message)
    begins = body.add_generation_prompt
    return {
        **variables,
        **_effort(service, body, variables),
        "add_generation_prompt": not continues if begins is None else begins,
        "continue_final_message": continues,
    }


def _effort(
    service: Service, body: ChatRequest | TemplateFields, variables: dict[str, Any]
) -> dict[str, Any]:
    """What `reasoning_effort` is in the template's own words.

    A template without any leaves what the model does anyway: think, if `--reasoning-parser` is set.
    """
    effort = body.reasoning_effort
    if effort is None:
        return {}
    words = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    known = service.llm.text.chat_template.variables
    told = {name: value for name, value in words.items() if name in known}
    thinks = service.config.reasoning_parser != "none"
    if not told and thinks is (effort == "none"):
        can = "off" if thinks else "on"
        raise BadRequest(
            f"reasoning_effort: {effort!r} is not supported, this model's chat template cannot "
            f"turn thoughts {can}",
            param="reasoning_effort",
            code="unsupported_value",
        )
    for name, value in told.items():
        if variables.get(name, value) != value:
            raise invalid("reasoning_effort", f"contradicts chat_template_kwargs.{name}")
    return told
