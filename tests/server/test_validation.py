"""Every rule for the fields of a request, each with the field that the error must name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pellucid.server import service
from tests.server.live import Live, live

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}


def refused(response: httpx.Response, param: str | None, status: int = 400) -> str:
    """Check the shape of a refusal; return its message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    message: str = error["message"]
    return message


def body_for(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {"messages": [USER]} if path == CHAT else {"prompt": "Hello"}
    return base | {"max_tokens": 2} | fields


SAMPLING: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", -1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_k", 1 << 40),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", 2.1),
    ("presence_penalty", -2.1),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_tokens", 10**30),
    ("max_tokens", "2"),
    ("min_tokens", 3),
    ("min_tokens", -1),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["x"] * 17),
    ("stop", ["a", "x" * 1025]),
    ("stop", 3),
    ("stop[1]", ["a", 3]),
    ("bad_words", [""]),
    ("bad_words", ["x"] * 129),
    ("stop_token_ids", [600]),
    ("stop_token_ids[0]", [-1]),
    ("stop_token_ids", 5),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [600]),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"600": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "much"}),
    ("logit_bias", [1]),
    ("n", 0),
    ("n", -1),
    ("n", 5),
    ("n", "two"),
    ("seed", 1 << 63),
    ("seed", -(1 << 63) - 1),
    ("seed", 0.5),
    ("prompt_logprobs", 6),
    ("prompt_logprobs", -1),
    ("prompt_logprobs", -2),
    ("prompt_logprobs", 1.5),
    ("prompt_logprobs", "1"),
    ("cache_salt", ""),
    ("priority", 1),
    ("priority", 1 << 63),
    ("timeout", 0),
    ("timeout", -1),
    ("timeout", "soon"),
    ("truncate_prompt_tokens", 0),
    ("truncate_prompt_tokens", -2),
    ("stream", "yes"),
    ("stream", 1),
    ("stream_options", {"include_usage": True}),
    ("request_id", ""),
    ("user", 3),
    ("ignore_eos", "no"),
    ("metadata", {"a": 1}),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("param", "value"), SAMPLING, ids=lambda v: repr(v)[:30])
def test_a_field_out_of_range_or_type_is_named(
    site: Live, path: str, param: str, value: Any
) -> None:
    field = param.partition("[")[0]
    message = refused(site.post(path, **body_for(path, {field: value})), param)
    assert field in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2, "temperature": 0}, "n"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stream": True, "stream_options": {"chunk": 1}}, "stream_options.chunk"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"max_tokens": 511}, "max_tokens"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_fields_that_do_not_go_together_are_named(
    site: Live, path: str, fields: dict[str, Any], param: str
) -> None:
    refused(site.post(path, **body_for(path, fields)), param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1.5}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 511}, "max_completion_tokens"),
        ({"max_completion_tokens": 3, "max_tokens": 4}, "max_tokens"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinkin": 1}}, "chat_template_kwargs.enable_thinkin"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{**USER, "foo": 1}]}, "messages[0].foo"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": [{**USER, "role": "tools"}]}, "messages[0].role"),
        ({"messages": [{**USER, "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**USER, "reasoning": "a"}]}, "messages[0].reasoning"),
        (
            {"messages": [ANSWER | {"reasoning": "a", "reasoning_content": "b"}, USER]},
            "messages[0].reasoning_content",
        ),
        ({"messages": [{**USER, "role": 3}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"prompt": "Hello"}, "prompt"),
        ({"logprob": True}, "logprob"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1}, "best_of"),
    ],
)
def test_rules_of_chat(site: Live, fields: dict[str, Any], param: str) -> None:
    refused(site.post(CHAT, **body_for(CHAT, fields)), param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [600]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[5, 600]]}, "prompt"),
        ({"prompt": [[5], [600]]}, "prompt[1]"),
        ({"prompt": ["a", "", "b"]}, "prompt[1]"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [5] * 512}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": -2}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": 1}, "echo"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"stream": True, "echo": True, "logprobs": 1, "n": 2}, "n"),
    ],
)
def test_rules_of_completions(site: Live, fields: dict[str, Any], param: str) -> None:
    refused(site.post(TEXT, **body_for(TEXT, fields)), param)


def test_a_missing_prompt_is_named(site: Live) -> None:
    assert "required" in refused(site.post(TEXT, max_tokens=1), "prompt")
    assert "required" in refused(site.post(CHAT, max_tokens=1), "messages")


@pytest.mark.parametrize("path", [CHAT, TEXT, "/generate", "/tokenize", "/detokenize"])
def test_an_unknown_field_is_called_unknown(site: Live, path: str) -> None:
    assert refused(site.post(path, temprature=1), "temprature") == "unknown field 'temprature'"


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize", "/generate"])
def test_an_unknown_model_is_a_404(site: Live, path: str) -> None:
    fields: dict[str, Any] = {"prompt": "x"}
    if path == "/detokenize":
        fields = {"tokens": [5]}
    response = site.post(path, model="gpt-5", **fields)
    assert "gpt-5" in refused(response, "model", status=404)
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_prompt_beyond_the_context_says_how_long_it_may_be(site: Live) -> None:
    response = site.post(TEXT, prompt=[5] * 500, max_tokens=20)
    message = refused(response, "max_tokens")
    assert "maximum context length is 512" in message
    assert "500" in message
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_more_answers_than_the_engine_can_hold_are_refused(site: Live) -> None:
    with live(max_num_seqs=2, max_waiting=1) as small:
        refused(small.post(TEXT, prompt=["a", "b"], n=2), "prompt")
        assert small.post(TEXT, prompt=["a", "b", "c"], max_tokens=1).status_code == 200


def test_biases_count_for_each_answer(site: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_BIASES", 12)
    fields: dict[str, Any] = {"prompt": ["a", "b"], "max_tokens": 1, "logit_bias": {"5": 1, "6": 1}}
    assert site.post(TEXT, **fields, n=3).status_code == 200
    message = refused(site.post(TEXT, **fields, n=4), "logit_bias")
    assert "8 answers" in message
    assert "12" in message


def test_priority_is_accepted_where_it_means_something() -> None:
    with live(policy="priority") as site:
        assert site.post(TEXT, prompt="x", max_tokens=1, priority=-5).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": [USER]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_rules_of_tokenize(site: Live, fields: dict[str, Any], param: str) -> None:
    refused(site.post("/tokenize", **fields), param)


@pytest.mark.parametrize(
    ("tokens", "param"), [([600], "tokens[0]"), ([5, -1], "tokens[1]"), ("5", "tokens")]
)
def test_rules_of_detokenize(site: Live, tokens: Any, param: str) -> None:
    refused(site.post("/detokenize", tokens=tokens), param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"prompt": ["a"]}, "prompt[0]"),
        ({"temperature": 3}, "temperature"),
        ({"logprobs": 1}, "logprobs"),
        ({"echo": True}, "echo"),
    ],
)
def test_rules_of_generate(site: Live, fields: dict[str, Any], param: str) -> None:
    for path in ("/generate", "/generate_stream"):
        refused(site.post(path, **({"prompt": "x"} | fields)), param)
    refused(site.post("/generate_stream", prompt="x", stream=False), "stream")
