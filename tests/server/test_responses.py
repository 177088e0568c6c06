"""Answers of the Responses API: through the `openai` client, and against its specification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from pellucid.frontend.outputs import Delta, Logprob
from pellucid.frontend.tools import tool_format
from pellucid.server.answer_form import AnswerForm
from pellucid.server.answer_parts import AnswerParts
from pellucid.server.openai_responses.objects import OutputMessage
from pellucid.server.openai_responses.output import Output
from pellucid.server.tools import Toolbox
from tests.frontend.tiny import tiny_text
from tests.server.live import MODEL, Live, live
from tests.server.response_events import Stream, checked_response, events_in
from tests.server.test_reasoning import CALL, PACES, THOUGHT, saying

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": MODEL, "input": "How warm?"}
TOOL: Any = {"type": "function", "name": "f", "strict": False}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK: Any = {"type": "function", "name": "get_time", "strict": False}


class Pet(BaseModel):
    """An animal."""

    name: str = Field(max_length=5)
    kind: Literal["cat", "dog"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    with live(runner={"max_model_len": 4096}) as running:
        yield running


def nameless(response: Any) -> Any:
    """A response without what differs between two that are the same."""
    items = [{**item, "id": "", "call_id": ""} for item in response["output"]]
    when = {"created_at": 0, "completed_at": 0, "usage": None}
    return response | when | {"id": "", "output": items}


def both(site: Live, **fields: Any) -> Any:
    """A whole response, which was checked, and which streamed is the same."""
    fields = ASK | {"seed": 1} | fields
    whole = checked_response(site.post(PATH, **fields).json())
    streamed = Stream().follow(events_in(site.post(PATH, **fields, stream=True)))
    assert nameless(whole) == nameless(checked_response(streamed))
    for usage in (whole["usage"], streamed["usage"]):
        usage["input_tokens_details"] = None  # the second finds what the first has cached
    assert whole["usage"] == streamed["usage"]
    return whole


def contents(response: Any) -> list[tuple[str, str]]:
    """The types of the items, each with what it says."""
    return [
        (item["type"], item["arguments"] if "arguments" in item else item["content"][0]["text"])
        for item in response["output"]
    ]


THINKS = ("reasoning", "Let me\nsee.")
SAYS = ("message", "Because.")
CALLS = ("function_call", '{"x": "é"}')


@PACES
@pytest.mark.parametrize(
    ("text", "end", "items"),
    [
        ("Because.", "stop", [SAYS]),
        ("Because.", "length", [SAYS]),
        ("", "stop", [("message", "")]),
        (THOUGHT + "Because.", "stop", [THINKS, SAYS]),
        (THOUGHT + "Because.", "length", [THINKS, SAYS]),
        ("<think>\nLet me\nsee.", "length", [THINKS]),
        (THOUGHT, "stop", [THINKS]),
        (CALL, "stop", [CALLS]),
        (THOUGHT + CALL, "stop", [THINKS, CALLS]),
        (f"Because. {CALL}\n{CALL}", "stop", [SAYS, CALLS, CALLS]),
        (f"{THOUGHT}Because. {CALL}", "stop", [THINKS, SAYS, CALLS]),
        (CALL.partition("}")[0], "length", [("function_call", '{"x": "é"')]),
    ],
)
def test_the_items_of_an_answer(
    text: str, end: Any, items: list[tuple[str, str]], pause: float
) -> None:
    with saying(text, end=end, pause=pause) as site:
        response = both(site, tools=[TOOL])
    assert contents(response) == items
    status = "completed" if end == "stop" else "incomplete"
    assert response["status"] == status
    assert [i["status"] for i in response["output"]] == ["completed"] * (len(items) - 1) + [status]
    ids = [item["id"] for item in response["output"]]
    assert len(set(ids)) == len(ids)
    if end == "length":
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["completed_at"] is None
    thoughts = len(tiny_text().tokenizer.encode(THOUGHT.rstrip()))
    counted = response["usage"]["output_tokens_details"]["reasoning_tokens"]
    if THOUGHT in text:
        assert counted == thoughts
    else:
        assert counted == (response["usage"]["output_tokens"] if "<think>" in text else 0)


def test_what_was_asked_is_repeated_with_its_defaults(shared: Live) -> None:
    response = both(shared, max_output_tokens=2)
    assert {name: response[name] for name in ("store", "background", "truncation")} == {
        "store": False,
        "background": False,
        "truncation": "disabled",
    }
    assert (response["temperature"], response["top_p"], response["top_logprobs"]) == (1, 1, 0)
    assert (response["tools"], response["tool_choice"]) == ([], "auto")
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert response["parallel_tool_calls"] is True
    assert response["metadata"] == {}
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 3,
        "max_tool_calls": 2,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "temperature": 0.5,
        "tool_choice": {"type": "function", "name": "get_weather"},
        "top_p": 0.9,
        "user": "u",
    }
    response = both(shared, **asked, tools=[WEATHER])
    assert {name: response[name] for name in asked} == asked
    assert response["tools"] == [WEATHER | {"strict": True}]


def test_an_answer_is_that_of_chat(shared: Live) -> None:
    fields: Any = {"seed": 6, "temperature": 0.7, "top_k": 50}
    chat = shared.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": ASK["input"]}],
        max_tokens=30,
        logprobs=True,
        top_logprobs=2,
        **fields,
    ).json()
    logprobs = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = both(shared, max_output_tokens=30, **fields, **logprobs)
    (part,) = response["output"][0]["content"]
    choice = chat["choices"][0]
    assert choice["finish_reason"] == "length"
    assert part["text"] == choice["message"]["content"]
    assert part["logprobs"] == choice["logprobs"]["content"]
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert response["usage"]["output_tokens"] == 30
    assert response["usage"]["total_tokens"] == chat["usage"]["total_tokens"]


def test_a_stop_string_completes_a_response() -> None:
    with saying("Because of that.", pause=0.001) as site:
        response = both(site, stop=[" of"], include=["message.output_text.logprobs"])
    assert contents(response) == [("message", "Because")]
    assert response["status"] == "completed"


@PACES
@pytest.mark.parametrize("before", ["", THOUGHT])
@pytest.mark.parametrize("behind", ["", f" {CALL}"])
def test_log_probabilities_are_those_of_the_text(before: str, behind: str, pause: float) -> None:
    """Neither of the thoughts and calls around it, nor of the token that ends the answer."""
    with saying(before + "Because." + behind, pause=pause) as site:
        response = both(site, tools=[TOOL], include=["message.output_text.logprobs"])
    (message,) = (item for item in response["output"] if item["type"] == "message")
    tokens = [entry["token"] for entry in message["content"][0]["logprobs"]]
    assert "".join(tokens).strip() == "Because."


def test_log_probabilities_of_text_behind_a_call_are_its_own() -> None:
    box = Toolbox(tool_format("hermes"), {}, forced=False, parallel=True)
    parts = AnswerParts(AnswerForm(box), tiny_text().tokenizer.decode, show_reasoning=True)
    output = Output(parts, lambda event: None)
    for letter in f"{CALL}\nBecause.":
        logprob = Logprob(7, -1.0, letter, letter.encode())
        output.push(Delta(0, letter, [7], logprobs=[logprob]))
    _, message = output.items
    assert isinstance(message, OutputMessage)
    tokens = "".join(entry.token for entry in message.content[0].logprobs)
    assert tokens.endswith("Because.")
    assert "arguments" not in tokens


def test_prompt_tokens_in_the_cache_are_told() -> None:
    ask = {"input": "Once upon a time there was a little engine. " * 9, "max_output_tokens": 1}
    with live() as site:
        first, second = (
            site.post(PATH, **ask).json()["usage"]["input_tokens_details"] for _ in range(2)
        )
    with live(prefix_caching=False) as site:
        without = site.post(PATH, **ask).json()["usage"]["input_tokens_details"]
    assert first["cached_tokens"] == 0
    assert first["cache_write_tokens"] == second["cached_tokens"] > 0
    assert second["cache_write_tokens"] == 0
    assert without == {"cached_tokens": 0, "cache_write_tokens": 0}


# ---- the client's ways


def test_the_client_creates_and_streams(shared: Live) -> None:
    client = shared.openai()
    fields: Any = ASK | {"max_output_tokens": 12, "extra_body": {"seed": 2}}
    whole = client.responses.create(**fields)
    assert whole.output_text
    text, last = "", None
    for event in client.responses.create(**fields, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert text == whole.output_text
    assert last is not None
    assert last.type == "response.incomplete"


@pytest.mark.parametrize("seed", range(3))
def test_the_client_parses(shared: Live, seed: int) -> None:
    fields: Any = ASK | {"text_format": Pet, "extra_body": {"seed": seed}}
    client = shared.openai()
    whole = client.responses.parse(**fields)
    assert isinstance(whole.output_parsed, Pet)
    with client.responses.stream(**fields) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.completed" in kinds
    assert final.output_parsed == whole.output_parsed
    assert final.text is not None
    assert final.text.format is not None
    assert final.text.format.type == "json_schema"


def test_the_client_gets_any_json(shared: Live) -> None:
    fields: Any = ASK | {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 400}
    done = shared.openai().responses.create(**fields, extra_body={"seed": 3})
    if done.status == "completed":
        assert isinstance(json.loads(done.output_text), dict)
    else:
        assert done.output_text.startswith("{")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ],
)
def test_a_call_that_is_forced(shared: Live, choice: Any, seed: int) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    response = both(shared, tools=tools, tool_choice=choice, seed=seed)
    assert response["output"]
    for item in response["output"]:
        assert (item["type"], item["name"]) == ("function_call", "get_weather")
        assert json.loads(item["arguments"])["city"] in ("Rome", "Oslo")
    assert response["status"] == "completed"
    if choice != "required":
        assert response["tool_choice"] == choice


def test_a_tool_is_strict_unless_it_says_otherwise(shared: Live) -> None:
    """A form rules out text, so that what remains is a call, held to its schema or to none."""
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"const": [1]}}}
    cities = set()
    for seed in range(8):
        response = both(shared, tools=[WEATHER], text=form, seed=seed, parallel_tool_calls=False)
        kind, text = contents(response)[0]
        if kind == "message":
            assert json.loads(text) == [1]
        else:
            cities.add(json.loads(text)["city"])
    assert cities <= {"Rome", "Oslo"}
    assert cities


def test_the_client_parses_calls_and_sends_them_back(shared: Live) -> None:
    tool = openai.pydantic_responses_function_tool(Pet)
    client = shared.openai()
    fields: Any = {"model": MODEL, "tools": [tool], "parallel_tool_calls": False}
    done = client.responses.parse(**fields, input="A pet?", tool_choice="required")
    (call,) = done.output
    assert call.type == "function_call"
    assert isinstance(call.parsed_arguments, Pet)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "bought"}
    turn: Any = [{"role": "user", "content": "A pet?"}, *done.output, result]
    client.responses.create(**fields, input=turn, max_output_tokens=3)
    counted = client.responses.input_tokens.count(**fields, input=turn)
    assert counted.input_tokens > done.usage.input_tokens  # type: ignore[union-attr]


def test_thoughts_and_text_are_sent_back_by_the_client() -> None:
    with saying(THOUGHT + "Because.") as site:
        client = site.openai()
        logprobs: Any = ["message.output_text.logprobs"]
        done = client.responses.create(**ASK, include=logprobs)
        assert [item.type for item in done.output] == ["reasoning", "message"]
        again = client.responses.create(model=MODEL, input=[*done.output])  # type: ignore[list-item]
        assert again.output_text == "Because."


# ---- counting


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"instructions": "Be brief."},
        {"tools": [WEATHER, CLOCK]},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"input": [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Well?"}]},
        {"text": {"format": {"type": "json_object"}}},
    ],
)
def test_what_is_counted_is_what_is_used(shared: Live, fields: Any) -> None:
    counted = shared.openai().responses.input_tokens.count(**ASK | fields)
    assert counted.to_dict() == {
        "object": "response.input_tokens",
        "input_tokens": counted.input_tokens,
    }
    used = shared.post(PATH, **ASK | fields, max_output_tokens=1).json()["usage"]
    assert counted.input_tokens == used["input_tokens"]
