"""The real `anthropic` client against the server; answers from engines that know what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pydantic
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent

from tests.server.live import MODEL, Live, live
from tests.server.test_reasoning import CALL, THOUGHT, saying

MESSAGES = "/v1/messages"
USER: Any = {"role": "user", "content": "Why?"}
ASK: Any = {"model": MODEL, "max_tokens": 50, "messages": [USER]}
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Rome", "Oslo"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK: Any = {
    "name": "get_time",
    "input_schema": {"type": "object", "additionalProperties": False},
}
TOOL: Any = {"name": "f", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def roomy() -> Iterator[Live]:
    """The tiny vocabulary makes many tokens of a description of tools."""
    with live(runner={"max_model_len": 4096}) as running:
        yield running


def strictly(kind: Any, data: Any) -> None:
    """The client's own model of `data` must know every field and miss none."""
    value = pydantic.TypeAdapter(kind).validate_python(data, strict=True)
    assert value.model_dump(mode="json", exclude_unset=True) == data
    assert unknown_fields(value) == []


def unknown_fields(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for part in value for name in unknown_fields(part)]
    if not isinstance(value, pydantic.BaseModel):
        return []
    return [*(value.model_extra or ()), *unknown_fields(list(value.__dict__.values()))]


def events_of(text: str) -> list[Any]:
    """The events of a stream, each of which must be named by its type."""
    events = []
    for entry in text.strip().split("\n\n"):
        name, data = entry.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def without_ids(message: Any) -> dict[str, Any]:
    fields: dict[str, Any] = message.to_dict()
    for block in fields["content"]:
        block.pop("parsed_output", None)
        block.pop("id", None)
    return {key: value for key, value in fields.items() if key not in ("id", "stop_details")}


THINKS = ("thinking", "Let me\nsee.")
CALLS = ("tool_use", {"x": "é"})
ANSWERS = [
    ("Because.", "none", [("text", "Because.")], "end_turn"),
    ("", "none", [], "end_turn"),
    (THOUGHT + "Because.", "qwen3", [THINKS, ("text", "Because.")], "end_turn"),
    ("Hm.</think>", "deepseek_r1", [("thinking", "Hm.")], "end_turn"),
    (f"Look: {CALL}", "none", [("text", "Look:"), CALLS], "tool_use"),
    (f"{THOUGHT}{CALL}\n{CALL}", "qwen3", [THINKS, CALLS, CALLS], "tool_use"),
    (f"{CALL} So. {CALL}", "none", [CALLS, ("text", "So."), CALLS], "tool_use"),
]


@pytest.mark.parametrize(("text", "parser", "blocks", "reason"), ANSWERS)
def test_an_answer_in_blocks_whole_and_streamed(
    text: str, parser: str, blocks: list[tuple[str, Any]], reason: str
) -> None:
    with saying(text, parser) as site:
        client, ask = site.anthropic(), {**ASK, "tools": [TOOL]}
        whole = client.messages.create(**ask)
        assert whole.id.startswith("msg_")
        shown = {"text": "text", "thinking": "thinking", "tool_use": "input"}
        assert [(b.type, getattr(b, shown[b.type])) for b in whole.content] == blocks
        assert (whole.stop_reason, whole.stop_sequence) == (reason, None)
        assert all(b.signature for b in whole.content if b.type == "thinking")
        assert all(b.name == "f" and b.id for b in whole.content if b.type == "tool_use")
        strictly(Message, site.post(MESSAGES, **ask).json())

        with client.messages.stream(**ask) as stream:
            said = "".join(stream.text_stream)
            streamed = stream.get_final_message()
        assert said == "".join(value for kind, value in blocks if kind == "text")
        assert without_ids(streamed) == without_ids(whole)


def test_the_events_of_a_stream_come_in_order() -> None:
    with saying(f"{THOUGHT}So. {CALL}") as site:
        text = site.post(MESSAGES, **ASK, tools=[TOOL], stream=True).text
    events = events_of(text)
    for event in events:
        strictly(RawMessageStreamEvent, event)
    first, *blocks, delta, stop = events
    assert first["type"] == "message_start"
    assert first["message"]["content"] == []
    assert first["message"]["stop_reason"] is None
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert stop == {"type": "message_stop"}
    kinds = []
    for index in range(3):
        start, *deltas, end = [event for event in blocks if event["index"] == index]
        assert (start["type"], end["type"]) == ("content_block_start", "content_block_stop")
        assert {event["type"] for event in deltas} == {"content_block_delta"}
        kinds.append((start["content_block"]["type"], deltas[-1]["delta"]["type"]))
    assert kinds == [
        ("thinking", "signature_delta"),
        ("text", "text_delta"),
        ("tool_use", "input_json_delta"),
    ]
    assert [event["index"] for event in blocks] == sorted(event["index"] for event in blocks)


def test_the_async_client_streams_too() -> None:
    async def ask(url: str) -> tuple[str, Any]:
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="none") as client,
            client.messages.stream(**ASK) as stream,
        ):
            said = "".join([text async for text in stream.text_stream])
            return said, await stream.get_final_message()

    with saying("Because of the café.", "none") as site:
        said, message = asyncio.run(ask(site.url))
    assert said == message.content[0].text == "Because of the café."
    assert message.stop_reason == "end_turn"


def test_thoughts_can_be_omitted() -> None:
    with saying(THOUGHT + "Because.") as site:
        for stream in (False, True):
            ask = {**ASK, "thinking": {"type": "adaptive", "display": "omitted"}}
            if stream:
                with site.anthropic().messages.stream(**ask) as events:
                    message: Any = events.get_final_message()
            else:
                message = site.anthropic().messages.create(**ask)
            thought, said = message.content
            assert (thought.thinking, said.text) == ("", "Because.")
            assert thought.signature


@pytest.mark.parametrize("choice", ["any", "tool"])
def test_a_forced_call_keeps_its_schema(roomy: Live, choice: str) -> None:
    chosen = {"type": choice, "disable_parallel_tool_use": True}
    if choice == "tool":
        chosen["name"] = "get_weather"
    ask: Any = {**ASK, "max_tokens": 400, "tools": [WEATHER, CLOCK], "tool_choice": chosen}
    with roomy.anthropic() as client:
        whole: Any = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed: Any = stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "tool_use"
        (call,) = message.content
        assert call.type == "tool_use"
        if call.name == "get_weather" or choice == "tool":
            assert call.input["city"] in ("Rome", "Oslo")
            assert call.input.keys() <= {"city", "days"}
        else:
            assert call.name == "get_time"


def test_a_call_that_is_no_json_loses_nothing() -> None:
    with saying(CALL.partition("}")[0], "none") as site:
        message: Any = site.anthropic().messages.create(**ASK, tools=[TOOL])
    assert message.content[0].input == {"INVALID_JSON": '{"x": "é"'}


@pytest.mark.parametrize("choice", [None, {"type": "none"}])
def test_without_a_forced_call_there_is_text(roomy: Live, choice: Any) -> None:
    fields = {} if choice is None else {"tool_choice": choice}
    message = roomy.anthropic().messages.create(**ASK, tools=[WEATHER], **fields)
    assert [block.type for block in message.content] == ["text"]
    assert message.stop_reason == "max_tokens"


def test_one_call_at_most_without_parallel_calls() -> None:
    with saying(f"{CALL}\n{CALL}", "none") as site:
        choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
        message = site.anthropic().messages.create(**ASK, tools=[TOOL], tool_choice=choice)
    assert len(message.content) == 1


def test_an_answer_can_be_parsed(roomy: Live) -> None:
    class Pet(pydantic.BaseModel):
        kind: Literal["cat", "dog"]

    ask = {**ASK, "max_tokens": 300}
    with roomy.anthropic() as client:
        parsed = client.messages.parse(**ask, output_format=Pet).parsed_output
        older = client.messages.create(
            **ask,
            extra_body={"output_format": {"type": "json_schema", "schema": {"const": [1]}}},
        )
    assert parsed is not None
    assert parsed.kind in ("cat", "dog")
    assert json.loads(older.content[0].text) == [1]  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_named(stream: bool) -> None:
    ask: Any = {**ASK, "stop_sequences": ["never", "of the"]}
    with saying("Because of the café.", "none") as site, site.anthropic() as client:
        if stream:
            with client.messages.stream(**ask) as events:
                message: Any = events.get_final_message()
        else:
            message = client.messages.create(**ask)
    assert message.content[0].text == "Because "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "of the")


def test_an_answer_ends_with_the_context_however_much_was_asked_for(site: Live) -> None:
    with site.anthropic() as client:
        message = client.messages.create(**{**ASK, "max_tokens": 8000})
        assert message.stop_reason == "model_context_window_exceeded"
        assert (
            message.usage.input_tokens
            + (message.usage.cache_read_input_tokens or 0)
            + (message.usage.output_tokens)
            == 512
        )
        room = message.usage.output_tokens
        exactly = client.messages.create(**{**ASK, "max_tokens": room})
        assert exactly.stop_reason == "max_tokens"


def test_tokens_are_counted_as_they_are_used_and_the_cached_ones_apart(site: Live) -> None:
    ask: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Twice told. " * 12}]}
    with site.anthropic() as client:
        counted = client.messages.count_tokens(**ask)
        first = client.messages.create(**ask, max_tokens=0)  # fills the cache
        with client.messages.stream(**ask, max_tokens=3) as stream:
            second = stream.get_final_message()
    strictly(MessageTokensCount, site.post(f"{MESSAGES}/count_tokens", **ask).json())
    assert (first.content, first.stop_reason) == ([], "max_tokens")
    assert first.usage.output_tokens == 0
    assert first.usage.input_tokens == counted.input_tokens
    assert first.usage.cache_read_input_tokens == 0
    assert second.usage.output_tokens == 3
    cached = second.usage.cache_read_input_tokens or 0
    assert cached > 0
    assert cached % 16 == 0  # whole blocks
    assert second.usage.input_tokens + cached == counted.input_tokens


def test_an_answer_has_its_requests_id_and_a_time_line(site: Live) -> None:
    message = site.anthropic().messages.create(**ASK)
    assert message._request_id
    told = site.http.get(f"/v1/requests/{message.id}/timeline").json()
    assert (told["id"], told["request_id"]) == (message.id, message._request_id)
    assert told["route"] == MESSAGES


def test_the_clients_tool_runner_goes_on_without_a_thread() -> None:
    heard: list[str] = []

    @anthropic.beta_tool
    def f(x: str) -> str:
        """Listens."""
        heard.append(x)
        return "heard"

    with saying(CALL) as site:
        runner = site.anthropic().beta.messages.tool_runner(**ASK, tools=[f], max_iterations=2)
        assert [message.stop_reason for message in runner] == ["tool_use", "tool_use"]
    assert "é" in heard
