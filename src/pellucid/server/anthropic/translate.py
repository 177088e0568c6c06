"""From a request of Anthropic's API to the chat request that says the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from pellucid.server.anthropic.protocol import (
    AnyChoice,
    AssistantBlock,
    AssistantTurn,
    AutoChoice,
    ClientTool,
    MessagesRequest,
    NamedChoice,
    NoChoice,
    SystemTurn,
    TextBlock,
    ThinkingBlock,
    ThinkingDisabled,
    ThinkingEnabled,
    TokenCountRequest,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
    UserTurn,
)
from pellucid.server.own_names import compiled
from pellucid.server.params import invalid
from pellucid.server.protocol import (
    ChatRequest,
    ChosenFunction,
    Function,
    FunctionCall,
    FunctionTool,
    JsonSchemaFormat,
    Message,
    MessageToolCall,
    NamedSchema,
    ToolChoice,
)
from pellucid.server.service import Service

NAMES = compiled(
    {
        r"\b(tools\[\d+\])\.function\.parameters\b": r"\1.input_schema",
        r"\b(tools\[\d+\])\.function\.name\b": r"\1.name",
        r"\bresponse_format\.json_schema\.schema\b": "output_config.format.schema",
        r"^stop\b": "stop_sequences",
        r"^thinking_budget\b": "thinking.budget_tokens",
        r"\bcontinue_final_message\b": "messages",
    }
)


def chat_request(service: Service, body: TokenCountRequest) -> ChatRequest:
    """`body` for the model of `service`, held to the server's limits.

    Raises:
        BadRequest: what `body` asks for cannot be had, or contradicts itself; names the field.
    """
    _check_results(body.messages)
    chat = ChatRequest(
        model=body.model,
        messages=[*_system(body.system), *_messages(body.messages)],
        tools=[_tool(i, tool) for i, tool in enumerate(body.tools or ())] or None,
        tool_choice=_choice(body),
        parallel_tool_calls=not getattr(body.tool_choice, "disable_parallel_tool_use", False),
        response_format=_response_format(body),
        continue_final_message=_is_prefilled(body.messages) or None,
        chat_template_kwargs=_template_variables(service, body),
    )
    if isinstance(body, MessagesRequest):
        chat.max_tokens = max(body.max_tokens, 1)  # a token that nobody is shown, if it was 0
        chat.temperature, chat.top_p, chat.top_k = body.temperature, body.top_p, body.top_k
        chat.stop, chat.stream = body.stop_sequences, body.stream
        chat.user = None if body.metadata is None else body.metadata.user_id
    service.check(chat)
    return chat


# ---- messages


def _system(system: str | list[TextBlock] | None) -> list[Message]:
    return [Message(role="system", content=_text(system))] if system else []


def _messages(turns: Iterable[Turn]) -> Iterator[Message]:
    """Turns in a row by the same speaker are one, as many templates insist."""
    for kind, group in groupby(turns, key=type):
        blocks = [block for turn in group for block in _blocks(turn)]
        if kind is UserTurn:
            yield from _user(blocks)
        elif kind is AssistantTurn:
            yield _assistant(blocks)
        else:
            yield Message(role="system", content=_text(blocks))


def _blocks(turn: UserTurn | AssistantTurn | SystemTurn) -> Sequence[Any]:
    return [TextBlock(text=turn.content)] if isinstance(turn.content, str) else turn.content


def _user(blocks: Sequence[TextBlock | ToolResultBlock]) -> Iterator[Message]:
    for kind, group in groupby(blocks, key=type):
        if kind is TextBlock:
            yield Message(role="user", content=_text(group))
        else:
            yield from (_result(block) for block in group if isinstance(block, ToolResultBlock))
    if not blocks:
        yield Message(role="user", content="")


def _result(block: ToolResultBlock) -> Message:
    text = _text(block.content or "")
    if block.is_error:  # templates know no failed results
        text = f"Error: {text}"
    return Message(role="tool", content=text, tool_call_id=block.tool_use_id)


def _assistant(blocks: Sequence[AssistantBlock]) -> Message:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
    said = _text(blocks)
    return Message(
        role="assistant",
        content=said if said or not calls else None,
        reasoning="\n".join(filter(None, thoughts)) or None,
        tool_calls=[_call(block) for block in calls] or None,
    )


def _call(block: ToolUseBlock) -> MessageToolCall:
    arguments = msgspec.json.encode(block.input).decode()
    return MessageToolCall(function=FunctionCall(name=block.name, arguments=arguments), id=block.id)


def _text(content: str | Iterable[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def _check_results(turns: Sequence[Turn]) -> None:
    called: set[str] = set()
    for i, turn in enumerate(turns):
        for j, block in enumerate(_blocks(turn)):
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
            elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                path = f"messages[{i}].content[{j}].tool_use_id"
                raise invalid(path, f"is the id of no earlier tool_use: {block.tool_use_id!r}")


def _is_prefilled(turns: Sequence[Turn]) -> bool:
    """Whether the answer continues the last message. Raises BadRequest if that ends in calls."""
    last = turns[-1]
    if not isinstance(last, AssistantTurn):
        return False
    if any(isinstance(block, ToolUseBlock) for block in _blocks(last)):
        path = f"messages[{len(turns) - 1}].content"
        raise invalid(path, "has a tool_use, whose tool_result must follow in a user message")
    return True


# ---- tools, form and thoughts


def _tool(place: int, tool: ClientTool) -> FunctionTool:
    schema = tool.input_schema
    if schema.get("type") != "object":
        raise invalid(f"tools[{place}].input_schema.type", "must be 'object'")
    if tool.input_examples:  # JSON Schema has a place for them
        schema = {**schema, "examples": tool.input_examples}
    function = Function(
        name=tool.name, description=tool.description, parameters=schema, strict=tool.strict
    )
    return FunctionTool(function=function)


def _choice(body: TokenCountRequest) -> Any:
    choice = body.tool_choice
    if isinstance(choice, NamedChoice):
        return ToolChoice(function=ChosenFunction(name=choice.name))
    names = {AutoChoice: "auto", AnyChoice: "required", NoChoice: "none"}
    return None if choice is None else names[type(choice)]


def _response_format(body: TokenCountRequest) -> JsonSchemaFormat | None:
    form = None if body.output_config is None else body.output_config.format
    if form is not None and body.output_format is not None:
        raise invalid("output_format", "and output_config.format exclude each other")
    form = form or body.output_format
    return None if form is None else JsonSchemaFormat(json_schema=NamedSchema(schema=form.schema))


def _template_variables(service: Service, body: TokenCountRequest) -> dict[str, Any] | None:
    """What the chat template is told, so that the model thinks or does not."""
    has_switch = service.llm.text.chat_template.can_think
    tells_thoughts = service.config.reasoning_parser != "none"
    if isinstance(body.thinking, ThinkingEnabled):
        if not tells_thoughts:
            problem = "'enabled' is not supported: no --reasoning-parser is set for this model"
            raise invalid("thinking.type", problem)
        if isinstance(body, MessagesRequest) and body.thinking.budget_tokens >= body.max_tokens:
            limit = f"must be below max_tokens ({body.max_tokens})"
            raise invalid("thinking.budget_tokens", f"{limit}, got {body.thinking.budget_tokens}")
        return {"enable_thinking": True} if has_switch else None
    if isinstance(body.thinking, ThinkingDisabled):
        if tells_thoughts and not has_switch:
            problem = "'disabled' cannot be kept: this model's chat template has no switch for it"
            raise invalid("thinking.type", problem)
        return {"enable_thinking": False}
    return None
