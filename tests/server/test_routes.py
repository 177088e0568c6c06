"""The smaller routes, and the document that describes them all."""

from __future__ import annotations

import json
from typing import Any

import pytest

import pellucid
from pellucid.runner.fake import expected_answer
from tests.frontend.tiny import ScriptedClient, tiny_text
from tests.server.live import MODEL, Live, live

PROMPT = "Once upon a time"


def answer(count: int, seed: int) -> list[int]:
    ids = tiny_text().tokenizer.encode(PROMPT)
    return expected_answer(ids, count, seed=seed, vocab=range(3, 550))


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_generate_streams_a_token_per_event(site: Live, path: str) -> None:
    response = site.post(path, prompt=PROMPT, max_tokens=12, seed=3)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *lines, end, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert all(set(event) == {"token", "text"} for event in events)
    tokens = [event["token"] for event in events]
    assert tokens == answer(12, 3)
    assert "".join(event["text"] for event in events) == tiny_text().tokenizer.decode(tokens)
    last = json.loads(end.removeprefix("data: "))
    assert last["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == 12


def test_generate_answers_whole_when_asked(site: Live) -> None:
    done = site.post("/generate", prompt=PROMPT, max_tokens=12, seed=3, stream=False).json()
    assert done["tokens"] == answer(12, 3)
    assert done["text"] == tiny_text().tokenizer.decode(done["tokens"])
    assert done["finish_reason"] == "length"
    assert done["usage"]["total_tokens"] == 12 + len(tiny_text().tokenizer.encode(PROMPT))


def test_tokenize_and_detokenize_undo_each_other(site: Live) -> None:
    text = "A naïve café in 東京 🙂"
    done = site.post("/tokenize", prompt=text, return_token_strs=True).json()
    assert done["tokens"] == tiny_text().tokenizer.encode(text)
    assert done["count"] == len(done["tokens"]) == len(done["token_strs"])
    assert done["max_model_len"] == 512
    assert site.post("/detokenize", tokens=done["tokens"]).json() == {"prompt": text}


def test_a_conversation_is_tokenized_as_chat_does_it(site: Live) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    count = site.post("/tokenize", messages=messages).json()["count"]
    chat = site.post("/v1/chat/completions", messages=messages, max_tokens=1).json()
    assert chat["usage"]["prompt_tokens"] == count
    bare = site.post("/tokenize", messages=messages, add_generation_prompt=False).json()
    assert site.post("/detokenize", tokens=bare["tokens"]).json()["prompt"] == f"user: {PROMPT}\n"


MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": [TOOL]},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "Th"}]}
        | {"continue_final_message": True},
        {"chat_template_kwargs": {"mood": None}},
    ],
)
def test_an_applied_template_is_what_tokenize_and_chat_read(
    site: Live, fields: dict[str, Any]
) -> None:
    body = {"messages": MESSAGES} | fields
    prompt = site.post("/apply-template", **body).json()["prompt"]
    assert PROMPT in prompt
    assert prompt.endswith("assistant:") == (fields.keys() <= {"tools", "chat_template_kwargs"})
    tokens = site.post("/tokenize", **body).json()["tokens"]
    assert site.post("/tokenize", prompt=prompt).json()["tokens"] == tokens
    if "tools" not in fields:  # described in words, they are longer than the fake model's context
        asked = site.post("/v1/chat/completions", **body, max_tokens=1, return_token_ids=True)
        assert asked.json()["prompt_token_ids"] == tokens


@pytest.mark.parametrize("path", ["/", "/health", "/live", "/v1/models", "/api/version"])
def test_what_can_be_had_can_be_asked_for(site: Live, path: str) -> None:
    head, got = site.http.head(path), site.http.get(path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]


def test_health_version_and_signpost(site: Live) -> None:
    assert site.http.get("/health").status_code == 200
    assert site.http.get("/version").json() == {"version": pellucid.__version__}
    signpost = site.http.get("/").json()
    assert signpost["model"] == MODEL
    for path in (signpost["openapi"], signpost["metrics"], signpost["health"]):
        assert site.http.get(path).status_code == 200


def test_a_model_is_described(site: Live) -> None:
    (listed,) = site.http.get("/v1/models").json()["data"]
    assert listed == site.http.get(f"/v1/models/{MODEL}").json()
    assert listed["object"] == "model"
    assert listed["max_model_len"] == 512


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


ERROR_BODIES = {"/api/": "OllamaError", "/v1/messages": "MessagesError"}


def test_the_openapi_document_describes_every_body_and_error(site: Live) -> None:
    document = site.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    posts = {
        path: operations["post"]
        for path, operations in document["paths"].items()
        if "post" in operations
    }
    assert {"/v1/chat/completions", "/v1/responses", "/v1/embeddings"} <= posts.keys()
    assert {"/apply-template", "/v1/messages", "/api/chat", "/api/embed"} <= posts.keys()
    for path, operation in posts.items():
        known = (name for prefix, name in ERROR_BODIES.items() if path.startswith(prefix))
        error_body = next(known, "ErrorBody")
        body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert schemas[body.rpartition("/")[2]]["additionalProperties"] is False
        for status in ("400", "404", "413", "415", "429", "500", "503", "504"):
            error = operation["responses"][status]["content"]["application/json"]["schema"]
            assert error["$ref"].endswith(f"/{error_body}")
        assert "422" not in operation["responses"]
    chat = schemas["ChatRequest"]["properties"]
    assert {"messages", "temperature", "top_k", "stream_options", "timeout"} <= chat.keys()
    error = schemas["ErrorDetail"]
    assert set(error["properties"]) == {"message", "type", "param", "code"}


def test_fingerprints_differ_where_answers_may() -> None:
    def fingerprint(**info: str) -> str:
        with live(client=ScriptedClient(**info)) as site:
            return site.service.fingerprint

    numbers = [{}, {"dtype": "float32"}, {"kv_dtype": "int8"}, {"kernels": "native"}]
    assert len({fingerprint(**info) for info in numbers}) == len(numbers)
    assert fingerprint() == fingerprint()
