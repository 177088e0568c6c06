"""Fields of other servers: accepted where they ask for nothing, refused by name otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live
from tests.server.test_validation import CHAT, TEXT, USER, body_for, refused

UNSUPPORTED: list[tuple[str, Any, Any]] = [  # a field, what asks for something, what does not
    ("functions", [], None),
    ("function_call", "auto", "none"),
    ("audio", {"voice": "x"}, None),
    ("modalities", ["text", "audio"], ["text"]),
    ("logit_processors", ["x"], []),
    ("logits_processors", ["x"], []),
    ("service_tier", "flex", "auto"),
    ("store", True, False),
    ("store", 0, False),
    ("use_beam_search", True, False),
    ("length_penalty", 0.5, 1.0),
    ("chat_template", "{{ 1 }}", None),
    ("prediction", {}, None),
    ("prompt_cache_retention", "24h", "in_memory"),
    ("web_search_options", {}, None),
    ("suffix", "x", ""),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("name", "asks", "neutral"), UNSUPPORTED)
def test_a_known_field_that_is_not_supported_is_refused_unless_neutral(
    site: Live, path: str, name: str, asks: Any, neutral: Any
) -> None:
    message = refused(site.post(path, **body_for(path, {name: asks})), name)
    assert message == f"{name} is not supported"
    assert site.post(path, **body_for(path, {name: neutral})).status_code == 200


@pytest.mark.parametrize(
    ("name", "asks", "neutral"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}], None),
        ("tools", [], None),
        ("tool_choice", "auto", "none"),
        ("parallel_tool_calls", "yes", True),
    ],
)
def test_a_field_of_chats_is_refused_elsewhere_unless_neutral(
    site: Live, name: str, asks: Any, neutral: Any
) -> None:
    message = refused(site.post(TEXT, **body_for(TEXT, {name: asks})), name)
    assert message == f"{name} is not supported"
    assert site.post(TEXT, **body_for(TEXT, {name: neutral})).status_code == 200


def test_all_neutral_values_and_nulls_are_accepted(site: Live) -> None:
    fields = {
        "model": "tiny",
        "messages": [
            USER,
            {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None},
            {"role": "user", "content": [{"type": "text", "text": "And?"}], "name": "ann"},
            {"role": "user", "content": "Well?", "type": "text"},  # as lm-eval writes messages
        ],
        "max_tokens": 1,
        "temperature": None,
        "top_p": None,
        "n": None,
        "stop": None,
        "seed": None,
        "logit_bias": None,
        "logprobs": None,
        "stream": None,
        "stream_options": None,
        "priority": None,
        "user": "ann",
        "metadata": {"run": "1"},
        "tools": None,
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
    }
    assert site.post(CHAT, **fields).status_code == 200
    assert site.post(TEXT, prompt="x", max_tokens=1, n=2, best_of=2).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_adapter_is_refused_with_the_reason(site: Live, path: str) -> None:
    response = site.post(path, **body_for(path, {"lora": [{"id": 0, "scale": 1.0}]}))
    assert refused(response, "lora") == (
        "lora is not supported: an adapter is asked for by its name, as `model`"
    )


def test_openais_newer_names_for_the_user_and_the_cache(site: Live) -> None:
    fields: Any = {"safety_identifier": "ann", "prompt_cache_key": "faq"}
    assert site.post(CHAT, **body_for(CHAT, fields)).status_code == 200
    for name in fields:
        refused(site.post(CHAT, **body_for(CHAT, {name: ""})), name)
