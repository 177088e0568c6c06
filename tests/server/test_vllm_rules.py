"""vLLM's validation rules, each by its name, with what the error says of field and limit.

They are those of its `sampling_params.py` and of the protocols of its chat and text completions.
Where a rule of ours differs, the table says so, and docs/validation.md too.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import LIMITS
from tests.server.live import Live
from tests.server.test_validation import CHAT, TEXT, USER, body_for, refused

GENERATE = "/generate"
ALL, OPENAI, CHATS, TEXTS = (CHAT, TEXT, GENERATE), (CHAT, TEXT), (CHAT,), (TEXT,)
TOOL: Any = {"type": "function", "function": {"name": "f"}}
NAMED: Any = {"type": "function", "function": {"name": "f"}}
OTHER: Any = {"type": "function", "function": {"name": "g"}}
FORM: Any = {"response_format": {"type": "json_object"}}
TOP = f"at most {LIMITS.max_logprobs}"

# Name of the rule, its routes, the fields that break it, the field to blame, the limit to name.
Rule = tuple[str, tuple[str, ...], dict[str, Any], str, str]
RULES: list[Rule] = [
    (
        "stream_options without stream",
        OPENAI,
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "needs stream",
    ),
    (
        "prompt_logprobs with stream",
        OPENAI,
        {"stream": True, "prompt_logprobs": 1},
        "prompt_logprobs",
        "cannot be streamed",
    ),
    ("prompt_logprobs not int", OPENAI, {"prompt_logprobs": "1"}, "prompt_logprobs", "int"),
    ("logprobs not int", TEXTS, {"logprobs": True}, "logprobs", "int"),
    ("logprobs not bool", CHATS, {"logprobs": 1}, "logprobs", "bool"),
    ("top_logprobs not int", CHATS, {"logprobs": True, "top_logprobs": 1.5}, "top_logprobs", "int"),
    (
        "top_logprobs without logprobs",
        CHATS,
        {"top_logprobs": 1},
        "top_logprobs",
        "needs logprobs to be true",
    ),
    ("negative logprobs other than -1", TEXTS, {"logprobs": -2}, "logprobs", "-1"),
    (
        "negative top_logprobs",
        CHATS,
        {"logprobs": True, "top_logprobs": -2},
        "top_logprobs",
        "-1",
    ),
    ("negative prompt_logprobs", OPENAI, {"prompt_logprobs": -2}, "prompt_logprobs", "-1"),
    ("more logprobs than max", TEXTS, {"logprobs": 6}, "logprobs", TOP),
    (
        "more top_logprobs than max",
        CHATS,
        {"logprobs": True, "top_logprobs": 6},
        "top_logprobs",
        TOP,
    ),
    ("more prompt_logprobs than max", OPENAI, {"prompt_logprobs": 6}, "prompt_logprobs", TOP),
    ("all logprobs are more than max", TEXTS, {"logprobs": -1}, "logprobs", TOP),
    (
        "json_schema without json_schema",
        ALL,
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "required",
    ),
    (
        "two kinds of structured output",
        ALL,
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs",
        "exactly one",
    ),
    (
        "two fields with structured output",
        ALL,
        {**FORM, "guided_regex": "a"},
        "guided_regex",
        "response_format",
    ),
    (
        "structured output and a named tool",
        CHATS,
        {**FORM, "tools": [TOOL], "tool_choice": NAMED},
        "response_format",
        "tool_choice",
    ),
    (
        "structured output and a required tool",
        CHATS,
        {**FORM, "tools": [TOOL], "tool_choice": "required"},
        "response_format",
        "tool_choice",
    ),
    ("tools: []", CHATS, {"tools": []}, "tools", "length >= 1"),
    ("tool_choice without tools", CHATS, {"tool_choice": "auto"}, "tool_choice", "needs tools"),
    (
        "a named tool without tools",
        CHATS,
        {"tool_choice": NAMED},
        "tool_choice",
        "needs tools",
    ),
    (
        "an unknown named tool",
        CHATS,
        {"tools": [TOOL], "tool_choice": OTHER},
        "tool_choice",
        "none of the tools",
    ),
    ("tool_choice of no known word", CHATS, {"tool_choice": "any"}, "tool_choice", "any"),
    (
        "tool_choice of a bad shape",
        CHATS,
        {"tools": [TOOL], "tool_choice": {"type": "function"}},
        "tool_choice.function",
        "required",
    ),
    (
        "continue_final_message and add_generation_prompt",
        CHATS,
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "add_generation_prompt",
    ),
    ("presence_penalty above 2", ALL, {"presence_penalty": 2.1}, "presence_penalty", "-2 to 2"),
    ("presence_penalty below -2", ALL, {"presence_penalty": -2.1}, "presence_penalty", "-2 to 2"),
    ("frequency_penalty above 2", ALL, {"frequency_penalty": 2.1}, "frequency_penalty", "-2 to 2"),
    (
        "frequency_penalty below -2",
        ALL,
        {"frequency_penalty": -2.1},
        "frequency_penalty",
        "-2 to 2",
    ),
    ("negative temperature", ALL, {"temperature": -0.1}, "temperature", "0 to 2"),
    ("temperature above 2", ALL, {"temperature": 2.1}, "temperature", "0 to 2"),
    # Ours bounds it on both sides, so that logits stay finite; vLLM takes any positive number.
    ("repetition_penalty of 0", ALL, {"repetition_penalty": 0}, "repetition_penalty", "1e-06"),
    ("negative repetition_penalty", ALL, {"repetition_penalty": -1}, "repetition_penalty", "1e-06"),
    ("vast repetition_penalty", ALL, {"repetition_penalty": 1e39}, "repetition_penalty", "1e+06"),
    ("top_p of 0", ALL, {"top_p": 0}, "top_p", "above 0 and at most 1"),
    ("top_p above 1", ALL, {"top_p": 1.01}, "top_p", "above 0 and at most 1"),
    # -1 is "off" here as in older versions of vLLM.
    ("negative top_k other than -1", ALL, {"top_k": -2}, "top_k", "-1 or 0 (off)"),
    ("top_k not int", ALL, {"top_k": 1.5}, "top_k", "int"),
    ("min_p below 0", ALL, {"min_p": -0.1}, "min_p", "0 to 1"),
    ("min_p above 1", ALL, {"min_p": 1.1}, "min_p", "0 to 1"),
    # Ours takes 0 for completions with echo, to score a prompt.
    ("max_tokens of 0", ALL, {"max_tokens": 0}, "max_tokens", "at least 1"),
    ("min_tokens above max_tokens", ALL, {"min_tokens": 3}, "min_tokens", "max_tokens (2)"),
    ("negative min_tokens", ALL, {"min_tokens": -1}, "min_tokens", "0"),
    ("an empty stop string", ALL, {"stop": ["a", ""]}, "stop", "empty"),
    ("an empty bad word", ALL, {"bad_words": [""]}, "bad_words", "empty"),
    # On /generate n must be 1 in any case. vLLM refuses best_of with greedy as well; ours has none.
    ("n above 1 with greedy", OPENAI, {"n": 2, "temperature": 0}, "n", "temperature 0"),
    ("n below 1", ALL, {"n": 0}, "n", "1"),
    ("a logit_bias key that is no int", ALL, {"logit_bias": {"x": 1}}, "logit_bias", "int"),
    ("a logit_bias beyond 100", ALL, {"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
    (
        "a biased token outside the vocabulary",
        ALL,
        {"logit_bias": {"600": 1}},
        "logit_bias",
        "0 to 599",
    ),
    (
        "an allowed token outside the vocabulary",
        ALL,
        {"allowed_token_ids": [600]},
        "allowed_token_ids",
        "0 to 599",
    ),
    ("no allowed token", ALL, {"allowed_token_ids": []}, "allowed_token_ids", "empty"),
    (
        "a stop token outside the vocabulary",
        ALL,
        {"stop_token_ids": [600]},
        "stop_token_ids",
        "0 to 599",
    ),
    (
        "a prompt token outside the vocabulary",
        (TEXT, GENERATE),
        {"prompt": [600]},
        "prompt",
        "0 to 599",
    ),
    (
        "prompt and max_tokens beyond the context",
        ALL,
        {"max_tokens": 512},
        "max_tokens",
        "This model's maximum context length is 512 tokens.",
    ),
    (
        "a prompt beyond the context",
        (TEXT, GENERATE),
        {"prompt": [5] * 512},
        "prompt",
        "This model's maximum context length is 512 tokens.",
    ),
    (
        "messages beyond the context",
        CHATS,
        {"messages": [USER] * 100},
        "messages",
        "This model's maximum context length is 512 tokens.",
    ),
    ("truncation to nothing", ALL, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
    # vLLM drops what it does not know with a warning.
    ("an unknown field", ALL, {"temprature": 1}, "temprature", "unknown field"),
]
CASES = [
    pytest.param(path, *rule[2:], id=f"{rule[0]}, {path}") for rule in RULES for path in rule[1]
]


@pytest.mark.parametrize(("path", "fields", "param", "limit"), CASES)
def test_a_rule_of_vllm(
    site: Live, path: str, fields: dict[str, Any], param: str, limit: str
) -> None:
    message = refused(site.post(path, **body_for(path, fields)), param)
    assert param.rpartition(".")[2] in message
    assert limit in message


def test_rules_about_bodies_are_those_of_test_bodies(site: Live) -> None:
    """What is no object, and a wrong Content-Type: here only that both are a 4xx."""
    for path in ALL:
        assert site.http.post(path, json=["x"]).status_code == 400
        assert site.http.post(path, data={"prompt": "x"}).status_code == 415
