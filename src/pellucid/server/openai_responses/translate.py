"""From a request of the Responses API to the chat request that asks for the same."""

from __future__ import annotations

from typing import Any

from pellucid.server import protocol as chat
from pellucid.server.conversation import is_object, text_of
from pellucid.server.openai_responses.protocol import (
    LOGPROBS,
    AllowedFunctions,
    AnyJson,
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputReasoning,
    InputText,
    InputTokensRequest,
    NamedFunction,
    OutputText,
    ResponsesRequest,
    ResponsesTool,
    SchemaJson,
    TextOptions,
)
from pellucid.server.own_names import compiled, own_names
from pellucid.server.params import check_stream_options, invalid
from pellucid.server.service import Service

_ENGINE_FIELDS = chat.EngineFields.__struct_fields__

NAMES = compiled(
    {
        r"\bmax_(completion_)?tokens\b": "max_output_tokens",
        r"\bresponse_format(\.json_schema)?\b": "text.format",
        r"(\btools\[\d+\])\.function\b": r"\1",
        r"(^|(?<=, )|(?<=\bin ))messages\b(\[\d+\])?": "input",
        r"^reasoning_effort\b": "reasoning.effort",
    }
)


def chat_request(service: Service, body: ResponsesRequest) -> chat.ChatRequest:
    """The chat request that asks for what `body` does. Raises BadRequest, in this API's names."""
    logprobs = LOGPROBS in (body.include or ())
    if body.top_logprobs and not logprobs:
        raise invalid("top_logprobs", f"needs include to have {LOGPROBS!r}")
    check_stream_options(body.stream_options, streams=bool(body.stream))
    request = _conversation(body)
    for name in _ENGINE_FIELDS:
        setattr(request, name, getattr(body, name))
    request.max_completion_tokens = body.max_output_tokens
    request.logprobs = logprobs
    request.top_logprobs = body.top_logprobs
    request.metadata = body.metadata
    with own_names(NAMES):
        service.check(request)
    return request


def counted_request(service: Service, body: InputTokensRequest) -> chat.ChatRequest:
    """The same for what is only counted."""
    request = _conversation(body)
    with own_names(NAMES):
        service.check(request)
    return request


def _conversation(body: ResponsesRequest | InputTokensRequest) -> chat.ChatRequest:
    choice = body.tool_choice
    if not body.tools and choice in ("none", "auto"):
        choice = None  # their clients send it along without tools
    return chat.ChatRequest(
        messages=messages_of(body.input, body.instructions),
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body.text),
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
    )


def messages_of(given: str | list[InputItem], instructions: str | None) -> list[chat.Message]:
    """The conversation; thoughts, text and calls of one turn of the model become one message.

    Instructions join a system message at the beginning: many templates take but one.

    Raises:
        BadRequest: arguments of a call are no JSON object.
    """
    items = [InputMessage(role="user", content=given)] if isinstance(given, str) else given
    messages: list[chat.Message] = []
    turn: chat.Message | None = None  # the model's, which may go on
    for i, item in enumerate(items):
        if not _goes_on(turn, item):
            turn = chat.Message(role=_role(item))
            messages.append(turn)
        assert turn is not None
        _add(turn, item, f"input[{i}]")
        if turn.role != "assistant":
            turn = None
    for message in messages:
        if message.content is None and not message.tool_calls:
            message.content = ""  # the thoughts led to nothing
    return _instructed(messages, instructions)


def _goes_on(turn: chat.Message | None, item: InputItem) -> bool:
    """Whether an item belongs to the model's turn so far: thoughts, then text, then calls."""
    if turn is None or _role(item) != "assistant" or isinstance(item, InputReasoning):
        return False
    return isinstance(item, InputCall) or (turn.content is None and not turn.tool_calls)


def _role(item: InputItem) -> Any:
    if isinstance(item, InputMessage):
        return item.role
    return "tool" if isinstance(item, InputCallOutput) else "assistant"


def _add(message: chat.Message, item: InputItem, path: str) -> None:
    if isinstance(item, InputMessage):
        message.content = _content(item.content)
    elif isinstance(item, InputCallOutput):
        message.content, message.name = _content(item.output), item.name
        message.tool_call_id = item.call_id
    elif isinstance(item, InputReasoning):
        message.reasoning = "\n".join(part.text for part in item.content or item.summary or ())
    else:
        if not is_object(item.arguments):
            raise invalid(f"{path}.arguments", "must be the JSON text of an object")
        function = chat.FunctionCall(name=item.name, arguments=item.arguments)
        call = chat.MessageToolCall(function=function, id=item.call_id)
        message.tool_calls = [*(message.tool_calls or ()), call]


def _content(content: Any) -> str | list[chat.TextPart]:
    if isinstance(content, str):
        return content
    parts: list[InputText | OutputText] = content
    return [chat.TextPart(part.text) for part in parts]


def _instructed(messages: list[chat.Message], instructions: str | None) -> list[chat.Message]:
    if instructions is None:
        return messages
    system = chat.Message(role="system", content=instructions)
    if messages and messages[0].role in ("system", "developer"):
        system.content = f"{instructions}\n\n{text_of(messages.pop(0))}"
    return [system, *messages]


def _tool(tool: ResponsesTool) -> chat.FunctionTool:
    return chat.FunctionTool(
        function=chat.Function(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            strict=tool.strict is not False,
        )
    )


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, NamedFunction):
        return chat.ToolChoice(function=chat.ChosenFunction(name=choice.name))
    if isinstance(choice, AllowedFunctions):
        allowed = [
            chat.AllowedFunction(function=chat.ChosenFunction(name=tool.name))
            for tool in choice.tools
        ]
        tools = chat.AllowedTools(mode=choice.mode, tools=allowed)
        return chat.AllowedToolsChoice(allowed_tools=tools)
    return choice


def _response_format(text: TextOptions | None) -> chat.ResponseFormat | None:
    form = text.format if text is not None else None
    if isinstance(form, SchemaJson):
        schema = chat.NamedSchema(schema=form.schema, name=form.name, strict=form.strict)
        return chat.JsonSchemaFormat(json_schema=schema)
    return chat.JsonObjectFormat() if isinstance(form, AnyJson) else None
