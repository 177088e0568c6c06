"""Requests of the Responses API: the prompt they become, and what is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from pellucid.config import ServerConfig
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.messages import unpack_tokens
from tests.frontend.tiny import CHAT_TEMPLATE, tiny_text
from tests.server.live import MODEL, Live, live
from tests.server.test_reasoning import Parrot
from tests.server.test_validation import refused

PATH = "/v1/responses"
COUNT = "/v1/responses/input_tokens"
USER: Any = {"role": "user", "content": "How warm?"}
TOOL: Any = {"type": "function", "name": "f", "description": "Does.", "strict": False}
CALL: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'}
RESULT: Any = {"type": "function_call_output", "call_id": "c1", "output": "31 degrees"}
THOUGHT: Any = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
}
SAID: Any = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Warm.", "annotations": [], "logprobs": []}],
}
# Shows everything that a message may hold, and a switch for thoughts.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}|{{ m.reasoning_content or '' }}|{{ m.content or '' }}|"
    "{% for c in m.tool_calls or [] %}{{ c.id }}:{{ c.function.name }}:{{ c.function.arguments }}"
    "{% endfor %}|{{ m.tool_call_id or '' }}\n{% endfor %}"
    "{% for t in tools or [] %}{{ t.function.name }}:{{ t.function.description }}{% endfor %}"
    "{% if enable_thinking is defined %}thinking {{ enable_thinking }}{% endif %}"
)


@pytest.fixture(scope="module")
def parrot() -> Parrot:
    return Parrot("Yes.", "stop")


@pytest.fixture(scope="module")
def site(parrot: Parrot) -> Iterator[Live]:
    config = ServerConfig(reasoning_parser="qwen3", max_messages=5)
    with live(
        config,
        client=parrot,
        text=dataclasses.replace(tiny_text(), chat_template=ChatTemplate(TEMPLATE, {})),
    ) as running:
        yield running


def prompt_of(site: Live, parrot: Parrot, **fields: Any) -> str:
    response = site.post(PATH, **fields)
    assert response.status_code == 200, response.text
    return site.llm.decode(unpack_tokens(parrot.added[-1].prompt), skip_special_tokens=False)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"input": "Hi"}, "user||Hi||\n"),
        ({"input": "Hi", "instructions": "Be kind."}, "system||Be kind.||\nuser||Hi||\n"),
        (
            {"input": [{"role": "system", "content": "Now."}, USER], "instructions": "Be kind."},
            "system||Be kind.\n\nNow.||\nuser||How warm?||\n",
        ),
        (
            {"input": [{"role": "developer", "content": "Now."}, USER]},
            "system||Now.||\nuser||How warm?||\n",
        ),
        (
            {
                "input": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "How"},
                            {"type": "input_text", "text": "warm?"},
                        ],
                    }
                ]
            },
            "user||How\nwarm?||\n",
        ),
        (
            {"input": [USER, {"role": "assistant", "content": "Warm."}, USER]},
            "user||How warm?||\nassistant||Warm.||\nuser||How warm?||\n",
        ),
        (
            {"input": [USER, THOUGHT, SAID, CALL, RESULT]},
            "user||How warm?||\nassistant|Hm.|Warm.|c1:f:{'x': 1}|\ntool||31 degrees||c1\n",
        ),
        (
            {"input": [USER, CALL, CALL | {"call_id": "c2"}, RESULT]},
            "user||How warm?||\nassistant|||c1:f:{'x': 1}c2:f:{'x': 1}|\ntool||31 degrees||c1\n",
        ),
        (
            {"input": [USER, SAID, SAID, THOUGHT, USER]},
            "user||How warm?||\nassistant||Warm.||\nassistant||Warm.||\nassistant|Hm.|||\n"
            "user||How warm?||\n",
        ),
        (
            {"input": [CALL, RESULT | {"output": [{"type": "input_text", "text": "31"}]}]},
            "assistant|||c1:f:{'x': 1}|\ntool||31||c1\n",
        ),
        (
            {
                "input": [
                    {
                        "type": "reasoning",
                        "summary": [{"type": "summary_text", "text": "In short"}],
                    },
                    SAID | {"phase": "final_answer"},
                ]
            },
            "assistant|In short|Warm.||\n",
        ),
        ({"input": "Hi", "tools": [TOOL]}, "user||Hi||\nf:Does."),
        ({"input": "Hi", "tools": [TOOL], "tool_choice": "none"}, "user||Hi||\n"),
        ({"input": "Hi", "tools": [], "tool_choice": "auto"}, "user||Hi||\n"),
        ({"input": "Hi", "reasoning": {"effort": "none"}}, "user||Hi||\nthinking False"),
        (
            {"input": "Hi", "reasoning": {"effort": "medium", "summary": "auto"}},
            "user||Hi||\nthinking True",
        ),
        ({"input": "Hi", "reasoning": {"effort": "xhigh"}}, "user||Hi||\nthinking True"),
        ({"input": "Hi", "reasoning": {"effort": None}}, "user||Hi||\n"),
        (
            {"input": "Hi", "chat_template_kwargs": {"enable_thinking": True}},
            "user||Hi||\nthinking True",
        ),
    ],
)
def test_the_prompt(site: Live, parrot: Parrot, fields: Any, prompt: str) -> None:
    assert prompt_of(site, parrot, **fields) == prompt
    counted = site.post(COUNT, **fields).json()["input_tokens"]
    assert counted == len(unpack_tokens(parrot.added[-1].prompt))


def test_sampling_fields_reach_the_engine(site: Live, parrot: Parrot) -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "stop": ["x"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "logit_bias": {"7": 1.0},
        "bad_words": ["bad"],
    }
    body = asked | {"input": "Hi", "max_output_tokens": 9, "cache_salt": "s", "user": "u"}
    assert site.post(PATH, **body).status_code == 200
    added = parrot.added[-1]
    params = added.sampling
    assert params.max_tokens == 9
    assert {name: getattr(params, name) for name in asked} == asked | {"logit_bias": {7: 1.0}}
    assert (added.cache_salt, added.user) == ("s", "u")
    assert site.post(PATH, input="Hi", safety_identifier="x").status_code == 200
    assert parrot.added[-1].user == "x"


NEUTRAL: dict[str, Any] = {
    "store": False,
    "background": False,
    "truncation": "disabled",
    "service_tier": "auto",
    "previous_response_id": None,
    "conversation": None,
    "prompt": None,
    "include": [],
    "top_logprobs": 0,
    "text": {"verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [TOOL | {"async": False, "output_schema": None, "allowed_callers": ["direct"]}],
    "stream_options": {"include_obfuscation": False},
    "context_management": [],
    "max_tool_calls": 1,
    "prompt_cache_key": "k",
    "prompt_cache_retention": None,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_is_accepted(site: Live, name: str) -> None:
    response = site.post(PATH, input="Hi", stream=name == "stream_options", **{name: NEUTRAL[name]})
    assert response.status_code == 200, response.text


LOGPROBS = "message.output_text.logprobs"
TEXT = {"type": "input_text", "text": "x"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        # what would need storage, or is not there
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}},
         "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"include_usage": True}},
         "stream_options.include_usage"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"messages": [USER]}, "messages"),
        # items
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].type"),
        ({"input": [USER | {"role": "tool"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [TEXT | {"detail": "low"}]}]},
         "input[0].content[0].detail"),
        ({"input": [SAID | {"phase": "commentary"}]}, "input[0].phase"),
        ({"input": [USER, THOUGHT | {"encrypted_content": "x"}]}, "input[1].encrypted_content"),
        ({"input": [USER, CALL | {"arguments": "{"}]}, "input[1].arguments"),
        ({"input": [USER, CALL | {"arguments": "[]"}]}, "input[1].arguments"),
        ({"input": [USER, {"type": "function_call_output", "output": "x"}]}, "input[1].call_id"),
        ({"input": [USER] * 6}, "input"),
        # rules, in the names of this API
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100000}, "max_output_tokens"),
        ({"max_output_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 99, "include": [LOGPROBS]}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
         "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
         "structured_outputs.regex"),
        ({"text": {"format": {"type": "json_object"}}, "tools": [TOOL], "tool_choice": "required"},
         "text.format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"not": {}}}]},
         "tools[0].parameters"),
        ({"reasoning": {"effort": "none"}, "chat_template_kwargs": {"enable_thinking": True}},
         "reasoning.effort"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(site: Live, fields: dict[str, Any], param: str) -> None:
    message = refused(site.post(PATH, **{"model": MODEL, "input": "Hi"} | fields), param)
    if param in ("max_tokens", "messages", "chat_template_kwargs.messages"):
        return
    for foreign in ("messages", "max_tokens", "max_completion", "response_format", ".function"):
        assert foreign not in message


@pytest.mark.parametrize("path", [PATH, COUNT])
def test_rules_hold_for_counting_too(site: Live, path: str) -> None:
    refused(site.post(path, input="Hi", tool_choice="required"), "tool_choice")
    refused(site.post(path, input="Hi", previous_response_id="x"), "previous_response_id")
    refused(site.post(path, input=[USER] * 6), "input")
    refused(site.post(path), "input")
    refused(site.post(path, input="Hi", model="other"), "model", 404)
    refused(site.post(COUNT, input="Hi", temperature=1), "temperature")


def test_a_prompt_that_is_too_long_is_the_inputs_fault() -> None:
    with live() as site:
        message = refused(site.post(PATH, input="word " * 600), "input")
        assert "messages" not in message


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "much"])
@pytest.mark.parametrize("parser", ["none", "deepseek_r1"])
@pytest.mark.parametrize("off", ["", "enable_thinking is false", "reasoning_effort == 'none'"])
def test_chats_take_the_same_efforts(off: str, parser: Any, effort: str) -> None:
    switch = f"{{% if {off} %}}<think></think>{{% endif %}}" if off else ""
    text = dataclasses.replace(tiny_text(), chat_template=ChatTemplate(CHAT_TEMPLATE + switch, {}))
    with live(ServerConfig(reasoning_parser=parser), text=text) as site:
        chat = site.post(
            "/v1/chat/completions", messages=[USER], reasoning_effort=effort, max_tokens=1
        )
        response = site.post(PATH, input="Hi", reasoning={"effort": effort}, max_output_tokens=1)
    can = effort != "much" and (bool(off) or (effort == "none") == (parser == "none"))
    if can:
        assert chat.status_code == 200
        assert response.json()["reasoning"] == {"effort": effort, "summary": None}
    else:
        refused(chat, "reasoning_effort")
        refused(response, "reasoning.effort")
