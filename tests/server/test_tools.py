"""Tools through the real `openai` client; the fake model follows the grammar and knows no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pellucid.config import ServerConfig
from tests.server.live import MODEL, Live, live
from tests.server.test_validation import refused

CHAT = "/v1/chat/completions"
USER: Any = {"role": "user", "content": "How warm?"}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}
LONG = {"max_model_len": 4096}  # the tiny vocabulary makes many tokens of the instructions
FORMATS = ("hermes", "llama3_json", "mistral", "pythonic")


@pytest.fixture(scope="module", params=FORMATS)
def site(request: pytest.FixtureRequest) -> Iterator[Live]:
    with live(ServerConfig(tool_call_parser=request.param), runner=LONG) as running:
        yield running


def check_call(call: Any) -> None:
    assert call.type == "function"
    assert call.id
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments, dict)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Rome", "Oslo")
        assert arguments.keys() <= {"city", "days"}
        assert 1 <= arguments.get("days", 1) <= 9
    else:
        assert call.function.name == "get_time"


@pytest.mark.parametrize("seed", range(4))
def test_a_named_tool_is_called(site: Live, seed: int) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    done = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], tools=[CLOCK, WEATHER], tool_choice=choice, seed=seed
    )
    (call,) = done.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    check_call(call)
    assert done.choices[0].message.content is None
    assert done.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_streamed_is_the_call_whole(site: Live, seed: int) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": [USER],
        "tools": [WEATHER],
        "tool_choice": "required",
        "n": 2,
        "seed": seed,
    }
    client = site.openai()
    whole = client.chat.completions.create(**fields)
    streamed: list[dict[int, Any]] = [{}, {}]
    reasons = ["", ""]
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            reasons[choice.index] += choice.finish_reason or ""
            assert not choice.delta.content
            for call in choice.delta.tool_calls or []:
                function: Any = call.function
                if call.id:
                    assert call.type == "function"
                    streamed[choice.index][call.index] = [function.name, ""]
                streamed[choice.index][call.index][1] += function.arguments or ""
    assert reasons == ["tool_calls", "tool_calls"]
    for choice in whole.choices:
        calls: Any = choice.message.tool_calls
        for call in calls:
            check_call(call)
        found = [[c.function.name, c.function.arguments] for c in calls]
        assert found == list(streamed[choice.index].values())
    assert whole.choices[0].finish_reason == "tool_calls"


def test_without_parallel_calls_there_is_one(site: Live) -> None:
    done = site.openai().chat.completions.create(
        model=MODEL,
        messages=[USER],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        n=4,
        seed=1,
    )
    assert [len(c.message.tool_calls or []) for c in done.choices] == [1] * 4


def test_a_free_choice_may_be_text(site: Live) -> None:
    done = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], tools=[WEATHER], max_tokens=5, seed=1
    )
    assert done.choices[0].message.content
    assert done.choices[0].message.tool_calls is None
    assert done.choices[0].finish_reason == "length"


@pytest.mark.parametrize("seed", range(3))
def test_a_strict_tool_is_kept_to_where_the_choice_is_free(site: Live, seed: int) -> None:
    """Bias the fake model's free choice by a form: text is impossible, so a call or the form."""
    tool = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": [1]}}}
    done = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], tools=[tool], response_format=form, n=4, seed=seed
    )
    for choice in done.choices:
        if choice.message.tool_calls:
            assert choice.finish_reason == "tool_calls"
            for call in choice.message.tool_calls:
                check_call(call)
        else:
            assert json.loads(choice.message.content or "") == [1]


def allowed(mode: str, *names: str) -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("seed", range(4))
def test_only_allowed_tools_are_called(site: Live, seed: int) -> None:
    done = site.openai().chat.completions.create(
        model=MODEL,
        messages=[USER],
        tools=[CLOCK, WEATHER],
        tool_choice=allowed("required", "get_weather"),
        n=2,
        seed=seed,
    )
    for choice in done.choices:
        calls: Any = choice.message.tool_calls
        assert {call.function.name for call in calls} == {"get_weather"}
        for call in calls:
            check_call(call)


def test_a_tool_that_is_not_allowed_cannot_be_called_of_free_will(site: Live) -> None:
    """The form rules out text, so that the fake model calls all that it may, and may not more."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": [1]}}}
    called = set()
    for seed in range(6):
        done = site.openai().chat.completions.create(
            model=MODEL,
            messages=[USER],
            tools=[CLOCK, WEATHER],
            tool_choice=allowed("auto", "get_time"),
            response_format=form,
            n=4,
            max_tokens=90,
            seed=seed,
        )
        for choice in done.choices:
            calls: Any = choice.message.tool_calls or []
            called |= {call.function.name for call in calls}
    assert called == {"get_time"}


def test_the_model_is_told_of_tools_that_are_not_allowed(site: Live) -> None:
    fields: Any = {"model": MODEL, "messages": [USER], "tools": [CLOCK, WEATHER], "max_tokens": 1}
    client = site.openai().chat.completions
    some = client.create(**fields, tool_choice=allowed("auto", "get_time"))
    both = client.create(**fields)
    assert some.usage is not None
    assert both.usage is not None
    assert some.usage.prompt_tokens == both.usage.prompt_tokens


def test_a_call_that_is_cut_says_so(site: Live) -> None:
    done = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], tools=[WEATHER], tool_choice="required", max_tokens=3
    )
    assert done.choices[0].finish_reason == "length"


def strict(**parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "get_time"}},
            },
            "tool_choice",
        ),
        ({"tools": [WEATHER], "tool_choice": allowed("auto", "get_time")}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": allowed("often", "get_weather")},
            "tool_choice.allowed_tools.mode",
        ),
        ({"tools": [WEATHER], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tool_choice": allowed("auto", "get_weather")}, "tool_choice"),
        (
            {
                "tools": [WEATHER, CLOCK],
                "tool_choice": allowed("required", "get_time"),
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
        ({"tools": [WEATHER, CLOCK, WEATHER]}, "tools[2].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
        ),
        ({"tools": [strict(type="array")]}, "tools[0].function.parameters.type"),
        ({"tools": [strict(enum=[1, 2])]}, "tools[0].function.parameters"),
        (
            {
                "tools": [CLOCK, strict(type="object", **{"not": {}})],
                "tool_choice": "required",
            },
            "tools[1].function.parameters",
        ),
        (
            {
                "tools": [WEATHER],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
        ({"tools": [WEATHER], "tool_choice": "required", "min_tokens": 1}, "min_tokens"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": []}, USER]},
            None,
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"type": "function", "function": {"name": "f", "arguments": "{"}}
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_rules_of_tools(shared: Live, fields: dict[str, Any], param: str | None) -> None:
    response = shared.post(CHAT, **{"messages": [USER], "max_tokens": 2} | fields)
    if param is None:
        assert response.status_code == 200, response.text
    else:
        refused(response, param)


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    with live(runner=LONG) as running:
        yield running


HISTORY: Any = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "31 degrees"},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]


def prompt_of(site: Live, **body: Any) -> str:
    tokens = site.post("/tokenize", **body).json()["tokens"]
    text: str = site.post("/detokenize", tokens=tokens).json()["prompt"]
    return text


def test_a_template_without_tools_is_told_in_words(shared: Live) -> None:
    text = prompt_of(shared, messages=HISTORY, tools=[WEATHER])
    assert text.startswith("system: You can call these functions")
    assert '"name": "get_weather"' in text
    assert "The weather of a city." in text
    assert (
        'assistant: <tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n'
        "</tool_call>\nuser: <tool_response>\n31 degrees\n</tool_response>\n"
        "<tool_response>\nsunny\n</tool_response>\nassistant:" in text
    )


def test_instructions_join_the_system_message(shared: Live) -> None:
    text = prompt_of(
        shared, messages=[{"role": "system", "content": "Be kind."}, USER], tools=[WEATHER]
    )
    assert text.startswith("system: Be kind.\n\nYou can call these functions")
    assert text.count("system:") == 1
    assert prompt_of(shared, messages=[USER]) == "user: How warm?\nassistant:"


def test_no_choice_leaves_the_tools_out(shared: Live) -> None:
    """The same answer as without tools, and the usage of a prompt without them."""
    fields: dict[str, Any] = {"model": MODEL, "messages": [USER], "max_tokens": 9, "seed": 3}
    client = shared.openai().chat.completions
    without = client.create(**fields)
    none = client.create(**fields, tools=[WEATHER], tool_choice="none")
    assert none.choices[0].message == without.choices[0].message
    assert none.usage is not None
    assert without.usage is not None
    assert none.usage.prompt_tokens == without.usage.prompt_tokens
