"""Thoughts and calls told apart over HTTP, from an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pellucid.config import ServerConfig
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.text import ModelText
from pellucid.messages import (
    AddRequest,
    Command,
    FinishReason,
    StepOutput,
    TokenDelta,
    TokenLogprobs,
)
from tests.frontend.tiny import CHAT_TEMPLATE, EOS, ScriptedClient, tiny_text
from tests.server.live import MODEL, Live, live
from tests.server.test_validation import refused

USER: Any = {"role": "user", "content": "Why?"}
TOOL: Any = {"type": "function", "function": {"name": "f"}}
THOUGHT = "<think>\nLet me\nsee.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


class Parrot(ScriptedClient):
    """Answers every request with the same text, a token per step.

    Without a pause between the steps the server finds all of an answer at once.
    """

    def __init__(
        self, text: str, end: FinishReason = "stop", pause: float = 0.0, **info: Any
    ) -> None:
        super().__init__(max_model_len=4096, num_kv_blocks=1024, **info)
        self._tokens = tiny_text().tokenizer.encode(text)
        if end == "stop":
            self._tokens.append(EOS)
        self._end = end
        self._pause = pause

    async def outputs(self) -> AsyncIterator[StepOutput]:
        async for output in super().outputs():
            yield output
            if self._pause:
                await asyncio.sleep(self._pause)

    def send(self, command: Command) -> None:
        super().send(command)
        if not isinstance(command, AddRequest):
            return
        for place, token in enumerate(self._tokens, start=1):
            likely = TokenLogprobs(token, -float(place), 1, [token], [-float(place)])
            self.feed(
                TokenDelta(
                    request_id=command.request_id,
                    token_ids=[token],
                    finish_reason=self._end if place == len(self._tokens) else None,
                    logprobs=None if command.sampling.logprobs is None else [likely],
                )
            )


@contextmanager
def saying(
    text: str, reasoning: Any = "qwen3", end: FinishReason = "stop", pause: float = 0.0
) -> Iterator[Live]:
    with live(ServerConfig(reasoning_parser=reasoning), client=Parrot(text, end, pause)) as site:
        yield site


def streamed(site: Live, **fields: Any) -> tuple[str, str, list[list[str]], str]:
    """Thought, content, calls and finish_reason, put together from the chunks."""
    thought = content = reason = ""
    calls: list[list[str]] = []
    for chunk in site.openai().chat.completions.create(
        model=MODEL, messages=[USER], stream=True, **fields
    ):
        (choice,) = chunk.choices
        extra = choice.delta.model_extra or {}
        assert extra.get("reasoning") == extra.get("reasoning_content")
        thought += extra.get("reasoning") or ""
        content += choice.delta.content or ""
        reason += choice.finish_reason or ""
        for call in choice.delta.tool_calls or []:
            function: Any = call.function
            if call.id:
                calls.append([function.name, ""])
            calls[call.index][1] += function.arguments
    return thought, content, calls, reason


PACES = pytest.mark.parametrize("pause", [0.0, 0.001])


@PACES
@pytest.mark.parametrize(
    ("text", "parser", "thought", "content", "arguments"),
    [
        (THOUGHT + "Because.", "qwen3", "Let me\nsee.", "Because.", []),
        ("Because.", "qwen3", "", "Because.", []),
        ("Hm.</think>Because.", "deepseek_r1", "Hm.", "Because.", []),
        (THOUGHT + "Because.", "none", "", THOUGHT + "Because.", []),
        (THOUGHT + CALL, "qwen3", "Let me\nsee.", "", ['{"x": "é"}']),
        (f"Look: {CALL}\n{CALL}", "none", "", "Look:", ['{"x": "é"}'] * 2),
        ("<tool_call>\nno\n", "none", "", "<tool_call>\nno\n", []),
    ],
)
def test_the_parts_of_an_answer(
    text: str, parser: str, thought: str, content: str, arguments: list[str], pause: float
) -> None:
    with saying(text, parser, pause=pause) as site:
        choice = site.post("/v1/chat/completions", messages=[USER], tools=[TOOL]).json()
        message, reason = choice["choices"][0]["message"], choice["choices"][0]["finish_reason"]
        calls = [["f", text] for text in arguments]
        assert streamed(site, tools=[TOOL]) == (thought, content, calls, reason)
    assert message.get("reasoning", "") == message.get("reasoning_content", "") == thought
    assert message["content"] == (content or None)
    found = [call["function"]["arguments"] for call in message.get("tool_calls", [])]
    assert found == arguments
    assert reason == ("tool_calls" if arguments else "stop")


def tokens_of(text: str) -> int:
    return len(tiny_text().tokenizer.encode(text))


@PACES
@pytest.mark.parametrize(
    ("text", "parser", "thought"),
    [
        (THOUGHT + "Because.", "qwen3", THOUGHT.rstrip()),
        (THOUGHT + CALL, "qwen3", THOUGHT.rstrip()),
        ("Hm.</think>Because.", "deepseek_r1", "Hm.</think>"),
        ("<think></think>Because.", "qwen3", "<think></think>"),
        ("Because.", "qwen3", ""),
        (THOUGHT + "Because.", "none", ""),
        ("", "qwen3", ""),
    ],
)
def test_tokens_of_thoughts_are_counted(text: str, parser: str, thought: str, pause: float) -> None:
    """The same number however the answer is sent; the marker that ends the thoughts is one."""
    fields: Any = {"messages": [USER], "tools": [TOOL]}
    with saying(text, parser, pause=pause) as site:
        whole = site.post("/v1/chat/completions", **fields).json()["usage"]
        fields |= {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}}
        *_, last = site.openai().chat.completions.create(**fields)
    assert whole["completion_tokens_details"] == {"reasoning_tokens": tokens_of(thought)}
    assert last.usage.to_dict() == whole


def test_thoughts_that_do_not_end_are_counted() -> None:
    with saying("<think>\nLet me see.") as site:
        usage = site.post("/v1/chat/completions", messages=[USER]).json()["usage"]
    counted = usage["completion_tokens_details"]["reasoning_tokens"]
    assert counted == usage["completion_tokens"]


def test_what_looks_like_a_call_is_text_without_tools() -> None:
    with saying(CALL, "none") as site:
        choice = site.post("/v1/chat/completions", messages=[USER]).json()["choices"][0]
        assert choice["message"]["content"] == CALL
        assert choice["finish_reason"] == "stop"


def test_one_call_at_most_without_parallel_calls() -> None:
    with saying(f"{CALL}\n{CALL}", "none") as site:
        fields: Any = {"tools": [TOOL], "parallel_tool_calls": False}
        assert streamed(site, **fields)[2] == [["f", '{"x": "é"}']]


def test_thoughts_can_be_left_out() -> None:
    with saying(THOUGHT + "Because.") as site:
        fields: Any = {"messages": [USER], "include_reasoning": False}
        message = site.post("/v1/chat/completions", **fields).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "Because.", "refusal": None}


@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
@pytest.mark.parametrize(
    ("begun", "said", "thought", "content"),
    [
        ("It is", " so.", None, " so."),
        ("<think>Hm", ", yes.</think>So.", ", yes.", "So."),
        ("<think>Hm.</think>It is", " so.", None, " so."),
    ],
)
def test_an_answer_that_has_begun_goes_on(
    parser: str, begun: str, said: str, thought: str | None, content: str
) -> None:
    earlier = {"role": "assistant", "content": begun}
    with saying(said, parser) as site:
        fields: Any = {"messages": [USER, earlier], "continue_final_message": True}
        answer = site.post("/v1/chat/completions", **fields).json()
    message = answer["choices"][0]["message"]
    assert (message.get("reasoning"), message["content"]) == (thought, content)
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert bool(counted) == bool(thought)


def test_earlier_thoughts_and_calls_may_be_sent_back() -> None:
    with saying("Fine.") as site:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        earlier = {"role": "assistant", "reasoning": "hm", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "c", "content": json.dumps({"x": 1})}
        response = site.post("/v1/chat/completions", messages=[USER, earlier, result])
        assert response.status_code == 200, response.text


# ---- reasoning_effort

SWITCH = CHAT_TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}"
DEGREES = CHAT_TEMPLATE + "[{{ reasoning_effort }}]"
ALWAYS = CHAT_TEMPLATE + "<think>"


def knowing(template: str) -> ModelText:
    return ModelText("tiny", tiny_text().tokenizer, ChatTemplate(template, {}))


@pytest.mark.parametrize(
    ("template", "effort", "ends"),
    [
        (SWITCH, "none", "<think></think>"),
        (SWITCH, "minimal", "assistant:"),
        (SWITCH, "high", "assistant:"),
        (DEGREES, "low", "[low]"),
        (CHAT_TEMPLATE, "none", "assistant:"),
        (CHAT_TEMPLATE, None, "assistant:"),
    ],
)
def test_reasoning_effort_reaches_the_template(template: str, effort: Any, ends: str) -> None:
    with live(text=knowing(template)) as site:
        fields = {"messages": [USER], "reasoning_effort": effort}
        prompt = site.post("/apply-template", **fields).json()["prompt"]
        assert prompt.endswith(ends)
        chat = site.post("/v1/chat/completions", **fields, max_tokens=1, return_token_ids=True)
        assert chat.json()["prompt_token_ids"] == tiny_text().tokenizer.encode(prompt)


def test_reasoning_effort_that_a_model_cannot_honour_is_refused() -> None:
    with live() as site:
        for path in ("/v1/chat/completions", "/apply-template"):
            for effort in ("low", "much", 3):
                fields = {"messages": [USER], "reasoning_effort": effort}
                refused(site.post(path, **fields), "reasoning_effort")
    with live(text=knowing(SWITCH)) as site:
        fields = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
        message = refused(
            site.post("/v1/chat/completions", messages=[USER], **fields), "reasoning_effort"
        )
        assert "enable_thinking" in message
    with live(ServerConfig(reasoning_parser="deepseek_r1"), text=knowing(ALWAYS)) as site:
        fields = {"messages": [USER], "reasoning_effort": "none"}
        refused(site.post("/v1/chat/completions", **fields), "reasoning_effort")
