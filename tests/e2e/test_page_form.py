"""The form of settings: every field reaches the API, and a refusal is shown at its field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pellucid.server.protocol import ChatRequest
from tests.e2e.browser import ask, opened, requests, say, set_up
from tests.e2e.test_page_chat import TOOLS
from tests.server.live import Live

if TYPE_CHECKING:
    from playwright.sync_api import Browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
FORM = {
    "temperature": ("0.5", 0.5),
    "top_p": ("0.9", 0.9),
    "top_k": ("7", 7),
    "min_p": ("0.01", 0.01),
    "max_tokens": ("9", 9),
    "seed": ("-4", -4),
    "logprobs": ("on", True),
    "top_logprobs": ("3", 3),
    "presence_penalty": ("0.1", 0.1),
    "frequency_penalty": ("0.2", 0.2),
    "repetition_penalty": ("1.1", 1.1),
    "logit_bias": ('{"5": -100}', {"5": -100}),
    "bad_words": ("once\nupon", ["once", "upon"]),
    "allowed_token_ids": ("40, 41 42", [40, 41, 42]),
    "stop": ("\\n\\n\nthe\\\\end", ["\n\n", "the\\end"]),
    "stop_token_ids": ("7", [7]),
    "min_tokens": ("2", 2),
    "n": ("2", 2),
    "timeout": ("30", 30),
    "include_stop_str_in_output": ("on", True),
    "ignore_eos": ("on", True),
    "skip_special_tokens": ("on", False),
    "cache": ("on", False),
    "reasoning_effort": ("none", "none"),
    "include_reasoning": ("on", False),
    "chat_template_kwargs": ('{"enable_thinking": false}', {"enable_thinking": False}),
    "tools": (TOOLS, json.loads(TOOLS)),
    "tool_choice": ("none", "none"),
    "parallel_tool_calls": ("on", False),
}
FORMS = {
    "json_object": ("", {"response_format": {"type": "json_object"}}),
    "json_schema": (
        SCHEMA,
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": json.loads(SCHEMA)},
            }
        },
    ),
    "regex": ("[ab]+", {"structured_outputs": {"regex": "[ab]+"}}),
    "choice": ("yes\nno", {"structured_outputs": {"choice": ["yes", "no"]}}),
    "grammar": ('root ::= "yes"', {"structured_outputs": {"grammar": 'root ::= "yes"'}}),
}
# What a person at a playground has no use for, or says elsewhere on the page.
NOT_IN_THE_FORM = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "max_completion_tokens",
    "prompt_logprobs",
    "echo",
    "user",
    "priority",
    "request_id",
    "cache_salt",
    "safety_identifier",
    "prompt_cache_key",
    "metadata",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "truncate_prompt_tokens",
    "add_special_tokens",
    "add_generation_prompt",
    "continue_final_message",
    "spaces_between_special_tokens",
]


def test_every_field_is_sent_as_it_was_entered(chromium: Browser, slow: Live) -> None:
    assert {*FORM, *NOT_IN_THE_FORM} == set(ChatRequest.__struct_fields__)
    with opened(chromium, slow.url) as page, requests(page) as bodies:
        set_up(page, max_tokens="3")
        ask(page, "Bare")
        given = {"model": "tiny", "messages": [{"role": "user", "content": "Bare"}], "stream": True}
        options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        assert bodies.pop() == {**given, **options, "max_tokens": 3}

        set_up(page, **{name: text for name, (text, _) in FORM.items()})
        page.reload()  # settings are kept, too, and those that are set are not folded away
        assert page.locator("#settings-a details[open]").count() == 3
        ask(page, "All")
        body = bodies.pop()
        assert {name: body[name] for name in FORM} == {
            name: sent for name, (_, sent) in FORM.items()
        }
        assert page.locator(".error:visible").all_inner_texts() == []

        set_up(page, **{**dict.fromkeys(FORM, ""), "max_tokens": "40"})
        for kind, (text, expected) in FORMS.items():
            set_up(page, form=kind, form_text=text)
            ask(page, "Formed")
            assert bodies.pop().items() >= expected.items()
            assert page.locator(".error:visible").all_inner_texts() == [], kind


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"temperature": "5"}, "temperature", "from 0 to 2"),
        ({"top_k": "1.5"}, "top_k", "int"),
        ({"n": "9999"}, "n", "at most"),
        ({"seed": "9" * 17}, "seed", "too many digits"),
        ({"stop_token_ids": "1 two"}, "stop_token_ids", "must be a number"),
        ({"logit_bias": "{"}, "logit_bias", "must be JSON"),
        ({"logit_bias": '{"5": 1000}'}, "logit_bias", "100"),
        ({"stop": "x\n" * 20}, "stop", "stop"),
        ({"logprobs": "on", "top_logprobs": "999"}, "top_logprobs", "at most"),
        ({"form": "json_schema", "form_text": '{"type": 5}'}, "form_text", "schema"),
        ({"form": "regex", "form_text": "("}, "form_text", "regex"),
        ({"tools": '[{"type": "function"}]'}, "tools", "required"),
    ],
)
def test_a_refusal_is_shown_at_its_field(
    chromium: Browser, slow: Live, settings: dict[str, str], field: str, message: str
) -> None:
    with opened(chromium, slow.url) as page:
        page.wait_for_selector("#model option", state="attached")
        set_up(page, **settings)
        say(page, "Hello")
        wrong = page.locator("[aria-invalid=true]")
        expect(wrong).to_be_focused()
        assert wrong.get_attribute("id") == f"a-{field}"
        assert message in page.inner_text(f"#{wrong.get_attribute('aria-describedby')}")

        set_up(page, **{**dict.fromkeys(settings, ""), "max_tokens": "3"})
        expect(wrong).to_have_count(0)
        if page.input_value("#input"):  # it was not sent at all
            page.click("#send")
        else:
            page.click("text=Again")
        page.wait_for_selector(".stats:has-text('3 tokens')")
