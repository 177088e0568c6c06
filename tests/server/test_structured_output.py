"""Structured output through the real `openai` client; the fake model follows the grammar alone."""

from __future__ import annotations

import json
import re
import threading
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from pellucid.frontend import structured
from pellucid.grammar.errors import CANNOT_FOLLOW
from pellucid.messages import AddRequest, Command, TokenDelta
from tests.frontend.tiny import ScriptedClient
from tests.server.live import MODEL, Live, live
from tests.server.test_validation import CHAT, TEXT, USER, refused

MESSAGE: Any = USER
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 30},
        "ok": {"type": "boolean"},
    },
    "required": ["n", "ok"],
    "additionalProperties": False,
}
FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    {"guided_json": SCHEMA},
]


class Shape(BaseModel):
    kind: Literal["circle", "square"]
    size: int = Field(ge=0, le=9)
    tags: list[Literal["red", "blue"]] = Field(max_length=3)


def text_of(body: dict[str, Any], path: str) -> str:
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop"
    text: str = choice["message"]["content"] if path == CHAT else choice["text"]
    return text


def base(path: str) -> dict[str, Any]:
    return {"messages": [USER]} if path == CHAT else {"prompt": "Hello", "max_tokens": 200}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_an_answer_keeps_its_schema(site: Live, path: str, form: dict[str, Any]) -> None:
    for seed in range(3):
        value = json.loads(text_of(site.post(path, **base(path), **form, seed=seed).json(), path))
        assert value.keys() == {"n", "ok"}
        assert 1 <= value["n"] <= 30


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("older", [False, True])
def test_regex_choice_and_grammar(site: Live, path: str, older: bool) -> None:
    def answer(kind: str, value: Any) -> str:
        form = {f"guided_{kind}": value} if older else {"structured_outputs": {kind: value}}
        return text_of(site.post(path, **base(path), **form, seed=1).json(), path)

    assert re.fullmatch("[0-9]{2}/[a-c]", answer("regex", "[0-9]{2}/[a-c]"))
    assert answer("choice", ["yes", "no"]) in ("yes", "no")
    assert answer("grammar", 'start: "ab" "c"?') in ("ab", "abc")


def test_the_client_parses_a_model(site: Live) -> None:
    done = site.openai().chat.completions.parse(
        model=MODEL, messages=[MESSAGE], response_format=Shape, seed=2
    )
    assert isinstance(done.choices[0].message.parsed, Shape)


def test_a_streamed_answer_is_the_whole_one_for_every_choice(site: Live) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": [MESSAGE],
        "n": 3,
        "seed": 5,
        "response_format": {"type": "json_object"},
        "max_tokens": 60,
    }
    client = site.openai().chat.completions
    whole = [c.message.content for c in client.create(**fields).choices]
    texts = ["", "", ""]
    for chunk in client.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == whole
    assert all(text.startswith("{") for text in texts)


def test_an_answer_cut_by_max_tokens_says_so(site: Live) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        site.openai().chat.completions.parse(
            model=MODEL, messages=[MESSAGE], response_format=Shape, max_tokens=3
        )


def test_a_stop_string_still_ends_an_answer(site: Live) -> None:
    form = {"structured_outputs": {"regex": "a+b+c"}, "stop": "b"}
    choice = site.post(CHAT, **base(CHAT), **form).json()["choices"][0]
    assert set(choice["message"]["content"]) == {"a"}
    assert choice["stop_reason"] == "b"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"yaml": 1}}, "structured_outputs.yaml"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
    ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"guided_json": {"uniqueItems": True}}, "guided_json"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    (
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        "guided_regex",
    ),
    ({"guided_regex": "a", "min_tokens": 1}, "min_tokens"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ({"guided_regex": "a", "bad_words": ["a"]}, "bad_words"),
    ({"guided_regex": "a", "allowed_token_ids": [5]}, "allowed_token_ids"),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda v: str(v)[:40])
def test_rules_of_structured_output(
    site: Live, path: str, fields: dict[str, Any], param: str
) -> None:
    refused(site.post(path, **base(path) | fields), param)


def test_the_refusal_of_a_schema_says_why(site: Live) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = site.post(CHAT, **base(CHAT), response_format=form)
    message = refused(response, "response_format.json_schema.schema")
    assert "uniqueItems" in message


def test_preempted_answers_keep_their_grammar() -> None:
    """A pool too small for all: requests are computed again from the middle of their answers."""
    runner = {"num_blocks": 14, "block_size": 4, "max_model_len": 56}
    with live(runner=runner, num_kv_blocks=14, block_size=4, max_num_seqs=4) as site:
        regex = "(one|two|three) [a-f]{20}!"
        body = site.post(
            TEXT, prompt="ab", n=4, max_tokens=50, seed=3, structured_outputs={"regex": regex}
        ).json()
        assert [c["finish_reason"] for c in body["choices"]] == ["stop"] * 4
        assert all(re.fullmatch(regex, c["text"]) for c in body["choices"])
        assert site.metric("vllm:num_preemptions_total") > 0


class Lost(ScriptedClient):
    """An engine whose grammars all become too complex."""

    def send(self, command: Command) -> None:
        super().send(command)
        if isinstance(command, AddRequest):
            error = f"{CANNOT_FOLLOW}: too many items"
            end = TokenDelta(
                request_id=command.request_id, token_ids=[], finish_reason="error", error=error
            )
            self.feed(end)


def test_a_grammar_that_grows_beyond_the_limits_is_a_400() -> None:
    with live(client=Lost()) as site:
        response = site.post(TEXT, prompt="Hello", guided_regex="a+")
        message = refused(response, "guided_regex")
        assert message == f"guided_regex: {CANNOT_FOLLOW}: too many items"
        assert response.json()["error"]["code"] == "unsupported_grammar"


def test_a_grammar_that_waits_too_long_for_others_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(structured, "COMPILE_SECONDS", 0.2)
    others = threading.Event()
    with live() as site:
        site.llm._inputs.grammars._thread.submit(others.wait)
        response = site.post(TEXT, prompt="Hello", guided_regex="a+")
        others.set()
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1


def test_the_simple_route_knows_forms_as_well(site: Live) -> None:
    form = {"structured_outputs": {"regex": "[a-c]{4}"}}
    answer = site.post("/generate", prompt="Hello", stream=False, **form).json()
    assert re.fullmatch("[a-c]{4}", answer["text"])


def test_text_as_response_format_changes_nothing(site: Live) -> None:
    fields = {"messages": [USER], "max_tokens": 8, "seed": 1}
    free = site.post(CHAT, **fields).json()["choices"]
    assert site.post(CHAT, **fields, response_format={"type": "text"}).json()["choices"] == free
