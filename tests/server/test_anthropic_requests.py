"""What requests of Anthropic's API tell the model and ask of the sampler, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from anthropic.types import TextBlock, ThinkingBlock, ToolUseBlock

from pellucid.config import ServerConfig
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.text import ModelText
from pellucid.grammar.compiler import Bitmask, Grammar, Matcher
from pellucid.messages import AddRequest, unpack_tokens
from tests.frontend.tiny import CHAT_TEMPLATE, THINKING_VOCAB_SIZE, thinking_text, tiny_text
from tests.server.live import MODEL, Live, live
from tests.server.test_anthropic_client import ASK, MESSAGES, TOOL, USER, WEATHER
from tests.server.test_reasoning import Parrot

# Shows all that a template may be told, a message per line.
SHOWING = (
    "{% for m in messages %}{{ m.role }}|{{ m.reasoning_content or '' }}|{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}|{{ c.id }}={{ c.function.name }}"
    "({{ c.function.arguments | tojson }}){% endfor %}"
    "{{ '|for ' ~ m.tool_call_id if m.tool_call_id else '' }}\n{% endfor %}"
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% if enable_thinking is defined %}think={{ enable_thinking }}\n{% endif %}"
    "{% if add_generation_prompt %}assistant|{% endif %}"
)


class Told:
    """A server that answers "Fine.", and what its engine was asked last."""

    def __init__(self, site: Live, engine: Parrot) -> None:
        self.site = site
        self._engine = engine

    def request(self, **fields: Any) -> AddRequest:
        response = self.site.post(MESSAGES, **ASK | fields)
        assert response.status_code == 200, response.text
        return self._engine.added[-1]

    def prompt(self, **fields: Any) -> str:
        ids = unpack_tokens(self.request(**fields).prompt)
        return tiny_text().tokenizer.decode(ids, skip_special_tokens=False)


@contextmanager
def telling(template: str = SHOWING, reasoning: Any = "none") -> Iterator[Told]:
    text = ModelText(MODEL, thinking_text().tokenizer, ChatTemplate(template, {}))
    engine = Parrot("Ok", vocab_size=THINKING_VOCAB_SIZE)
    with live(ServerConfig(reasoning_parser=reasoning), client=engine, text=text) as site:
        yield Told(site, engine)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    with telling() as running:
        yield running


def turn(role: str, *content: Any) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def result(call_id: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


CACHED: Any = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
CALL: Any = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": [1, "é"]}}


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, ["user||Why?"]),
        ({"system": "Be kind."}, ["system||Be kind.", "user||Why?"]),
        (
            {"system": [text("Be kind.") | CACHED, text("Be brief.")]},
            ["system||Be kind.\nBe brief.", "user||Why?"],
        ),
        ({"system": ""}, ["user||Why?"]),
        ({"messages": [turn("user", text("A"), text("B")), USER]}, ["user||A\nB\nWhy?"]),
        (
            {"messages": [USER, {"role": "system", "content": "Now."}, USER]},
            ["user||Why?", "system||Now.", "user||Why?"],
        ),
        (
            {
                "messages": [
                    USER,
                    turn(
                        "assistant",
                        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "redacted_thinking", "data": "xyz"},
                        text("Look:"),
                        CALL | CACHED,
                        CALL | {"id": "b", "input": {}, "caller": {"type": "direct"}},
                    ),
                    turn(
                        "user",
                        result("a", "31"),
                        result("b", [text("no"), text("way")], is_error=True),
                        {"type": "tool_result", "tool_use_id": "a"},
                        text("And?"),
                    ),
                ]
            },
            [
                'user||Why?\nassistant|Hm.|Look:|a=f({"x": [1, "é"]})|b=f({})',
                "tool||31|for a",
                "tool||Error: no\nway|for b",
                "tool|||for a",
                "user||And?",
            ],
        ),
    ],
)
def test_what_the_model_is_told(told: Told, fields: dict[str, Any], lines: list[str]) -> None:
    assert told.prompt(**fields) == "\n".join([*lines, "assistant|"])


def test_tools_are_told_with_their_examples(told: Told) -> None:
    tool = TOOL | CACHED | {"description": "Does f.", "strict": True, "input_examples": [{"x": 1}]}
    assert told.prompt(tools=[tool]).splitlines()[1] == (
        '{"type": "function", "function": {"name": "f", "description": "Does f.", '
        '"parameters": {"type": "object", "examples": [{"x": 1}]}}}'
    )
    assert "Does f." not in told.prompt(tools=[tool], tool_choice={"type": "none"})
    assert told.prompt(tools=[]) == told.prompt()


def test_a_final_message_of_the_assistant_is_continued(told: Told) -> None:
    begun = turn("assistant", text("Beca"))
    assert told.prompt(messages=[USER, begun]) == "user||Why?\nassistant||Beca"


def test_blocks_of_an_answer_may_be_sent_back(told: Told) -> None:
    """As the client's own objects, whatever fields they have."""
    blocks: Any = [
        ThinkingBlock(type="thinking", thinking="Hm.", signature="s"),
        TextBlock(type="text", text="Look:", citations=None),
        ToolUseBlock(type="tool_use", id="a", name="f", input={}, caller=None),
    ]
    results: Any = turn("user", result("a", "31"))
    client = told.site.anthropic().messages
    answered: Any = {"role": "assistant", "content": blocks}
    client.create(model=MODEL, max_tokens=5, messages=[USER, answered, results])


def test_what_the_sampler_is_asked_for(told: Told) -> None:
    asked = told.request(
        max_tokens=7,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        stop_sequences=["\n\nHuman:"],
        metadata={"user_id": "alice"},
        service_tier="standard_only",
        cache_control={"type": "ephemeral"},
        container=None,
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        mcp_servers=[],
    )
    sampling = asked.sampling
    assert (sampling.max_tokens, sampling.temperature) == (7, 0.5)
    assert (sampling.top_p, sampling.top_k, sampling.stop) == (0.25, 3, ["\n\nHuman:"])
    assert asked.user == "alice"


@pytest.mark.parametrize(
    ("thinking", "line"),
    [
        (None, ""),
        ({"type": "adaptive", "display": "summarized"}, ""),
        ({"type": "enabled", "budget_tokens": 1024}, "think=True\n"),
        ({"type": "disabled"}, "think=False\n"),
    ],
)
def test_a_template_with_a_switch_is_told_whether_to_think(thinking: Any, line: str) -> None:
    with telling(reasoning="qwen3") as told:
        prompt = told.prompt(thinking=thinking, max_tokens=1025)
    assert prompt == f"user||Why?\n{line}assistant|"


def test_thoughts_are_promised_only_where_they_can_be_had() -> None:
    without_switch = SHOWING.replace("enable_thinking", "unknown")
    off, on = {"type": "disabled"}, {"type": "enabled", "budget_tokens": 2000}
    with telling(without_switch, "deepseek_r1") as told:
        refused(told.site.post(MESSAGES, **ASK, thinking=off), "thinking.type")
        told.prompt(thinking=on, max_tokens=2001)
        response = told.site.post(MESSAGES, **ASK | {"max_tokens": 2000}, thinking=on)
        refused(response, "thinking.budget_tokens")
    with telling() as told:
        refused(told.site.post(MESSAGES, **ASK, thinking=on), "thinking.type")


class Brooding(Matcher):
    """Ends its thoughts only where nothing else is allowed."""

    def __init__(self, matcher: Matcher, end: int) -> None:
        self._inner = matcher
        self._end = end

    def fill(self, row: Bitmask) -> None:
        self._inner.fill(row)
        others = row.copy()
        others[self._end // 32] &= ~np.uint32(1 << self._end % 32)
        if others.any():
            row[:] = others

    def accept(self, token_ids: Sequence[int]) -> None:
        self._inner.accept(token_ids)


@pytest.mark.parametrize(
    "special", [False, True], ids=["marker is text", "marker is in the prompt"]
)
@pytest.mark.parametrize("form", ["text", "json", "auto", "strict", "any"])
def test_a_budget_ends_the_thoughts(
    form: str, special: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = WEATHER | {"strict": True}
    fields: dict[str, Any] = {
        "text": {},
        "json": {"output_config": {"format": {"type": "json_schema", "schema": {"const": 7}}}},
        "auto": {"tools": [TOOL]},
        "strict": {"tools": [strict]},
        "any": {"tools": [strict], "tool_choice": {"type": "any"}},
    }[form]
    kinds, reason = ["thinking", "text"] if form == "json" else ["thinking"], "end_turn"
    if form == "any":
        kinds, reason = ["thinking", "tool_use"], "tool_use"
    tokenizer = thinking_text(special=special).tokenizer
    template = CHAT_TEMPLATE + ("<think>" if special else "")
    text = ModelText(MODEL, tokenizer, ChatTemplate(template, {}))
    end = tokenizer.encode("</think>")[0]
    matcher = Grammar.matcher
    monkeypatch.setattr(Grammar, "matcher", lambda *args: Brooding(matcher(*args), end))
    runner = {"vocab_size": THINKING_VOCAB_SIZE, "max_model_len": 4096}
    with live(ServerConfig(reasoning_parser="qwen3"), runner=runner, text=text) as site:
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        asked = ASK | {"max_tokens": 3000}
        answer = site.anthropic().messages.create(**asked, thinking=thinking, **fields)
    assert [block.type for block in answer.content] == kinds
    assert answer.stop_reason == reason
    assert "</think>" not in str(answer.content)
    behind = answer.usage.output_tokens - 1024
    assert 1 <= behind < (400 if form in ("json", "any") else 5)  # white space is drawn, too


def test_a_budget_is_not_for_an_answer_that_goes_on_behind_its_thoughts() -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with telling(reasoning="deepseek_r1") as told:
        asked = told.request(thinking=thinking, max_tokens=2000)
        assert asked.sampling.grammar is not None
        begun = [USER, turn("assistant", text("It is"))]
        asked = told.request(thinking=thinking, max_tokens=2000, messages=begun)
        assert asked.sampling.grammar is None


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with live(ServerConfig(reasoning_parser="qwen3"), runner={"max_model_len": 4096}) as site:
        response = site.post(MESSAGES, **ASK | {"max_tokens": 2000}, thinking=thinking)
        refused(response, "thinking.budget_tokens cannot be kept")


def refused(response: httpx.Response, field: str) -> None:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert field in error["message"], error


PICTURE: Any = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}
STRICT: Any = {"name": "g", "strict": True, "input_schema": {"type": "object", "not": {}}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1 << 40}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [turn("user", PICTURE)]}, "messages[0].content[0].type: 'image'"),
        ({"messages": [turn("user", CALL)]}, "messages[0].content[0].type: 'tool_use'"),
        (
            {"messages": [USER, turn("assistant", CALL), turn("user", result("a", [PICTURE]))]},
            "messages[2].content[0].content[0].type: 'image'",
        ),
        (
            {"messages": [USER, turn("user", result("a", "x"))]},
            "messages[1].content[0].tool_use_id",
        ),
        ({"messages": [USER, turn("assistant", CALL)]}, "messages[1].content"),
        (
            {"messages": [turn("user", text("x") | {"citations": [{"type": "page_location"}]})]},
            "messages[0].content[0].citations",
        ),
        ({"messages": [turn("user", text("x") | {"cache_control": {"type": "for_ever"}})]}, "type"),
        ({"temperature": 1.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences must"),
        ({"stop_sequences": [""]}, "stop_sequences must"),
        ({"stop": ["x"]}, "stop"),
        ({"n": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools[0].input_schema.type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [TOOL, STRICT]}, "tools[1].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "any"},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_config.format.schema cannot be combined",
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "output_config.format.schema",
        ),
        (
            {
                "output_format": {"type": "json_schema", "schema": {}},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_format",
        ),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type: 'between_tools'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 3}}, "thinking.budget_tokens"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management",
        ),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"metadata": {"user": "x"}}, "metadata.user"),
        ({"system": [PICTURE]}, "system[0].type"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    site: Live, fields: dict[str, Any], named: str
) -> None:
    body = {key: value for key, value in (ASK | fields).items() if value is not None}
    refused(site.post(MESSAGES, **body), named)


@pytest.mark.parametrize("depth", [100, 300, *range(900, 1000, 5)])
def test_nesting_has_a_limit(site: Live, depth: int) -> None:
    value = "[" * depth + "]" * depth
    call = CALL | {"input": {"x": "DEEP"}}
    body = ASK | {"messages": [USER, turn("assistant", call), turn("user", result("a", "x"))]}
    raw = json.dumps(body).replace('"DEEP"', value)
    response = site.http.post(MESSAGES, content=raw, headers={"Content-Type": "application/json"})
    if depth < 256:
        assert response.status_code == 200, response.text
    else:
        refused(response, "nested too deeply")


def test_results_count_as_messages() -> None:
    with live(ServerConfig(max_messages=3)) as site:
        results = [result("a", "x")] * 3
        conversation = [USER, turn("assistant", CALL), turn("user", *results)]
        refused(site.post(MESSAGES, **ASK | {"messages": conversation}), "messages")
        assert site.post(MESSAGES, **ASK | {"messages": [USER] * 3}).status_code == 200


@pytest.mark.parametrize("field", ["max_tokens", "stream", "temperature"])
def test_a_count_knows_no_fields_of_an_answer(site: Live, field: str) -> None:
    body = {"model": MODEL, "messages": [USER], field: 1}
    refused(site.post(f"{MESSAGES}/count_tokens", **body), field)
