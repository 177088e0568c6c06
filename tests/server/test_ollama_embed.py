"""/api/embed and /api/embeddings through the ollama client."""

from __future__ import annotations

from typing import Any

import ollama
import pytest

from pellucid.runner.fake import HIDDEN_SIZE
from tests.frontend.tiny import tiny_text
from tests.server.live import MODEL, Live, eventually, live
from tests.server.test_embeddings import TEXTS, vector

LONG = "Once upon a time " * 300


@pytest.fixture
def client(site: Live) -> ollama.Client:
    return ollama.Client(host=site.url)


@pytest.mark.parametrize("asked", [MODEL, f"{MODEL}:latest"])
def test_embed(client: ollama.Client, asked: str) -> None:
    found = client.embed(asked, TEXTS, options={"num_ctx": 64}, keep_alive="5m")
    assert found.embeddings == [vector(text).tolist() for text in TEXTS]
    assert found.model == asked
    assert found.prompt_eval_count == sum(len(tiny_text().tokenizer.encode(t)) for t in TEXTS)
    assert (found.total_duration or 0) > 0
    assert found.model_extra in (None, {})
    assert client.embed(asked, TEXTS[0]).embeddings == found.embeddings[:1]


def test_what_does_not_fit_is_cut_at_its_end_or_refused(client: ollama.Client) -> None:
    ids = tiny_text().tokenizer.encode(LONG)
    assert len(ids) > 512
    assert client.embed(MODEL, LONG).embeddings == [vector(ids[:512]).tolist()]
    with pytest.raises(ollama.ResponseError, match="the context has 512") as refused:
        client.embed(MODEL, LONG, truncate=False)
    assert refused.value.status_code == 400


def test_the_context_may_be_shorter(client: ollama.Client) -> None:
    ids = tiny_text().tokenizer.encode(TEXTS[0])
    few = {"num_ctx": 2}
    assert client.embed(MODEL, TEXTS[0], options=few).embeddings == [vector(ids[:2]).tolist()]
    with pytest.raises(ollama.ResponseError, match="the context has 2"):
        client.embed(MODEL, TEXTS[0], options=few, truncate=False)
    with pytest.raises(ollama.ResponseError, match=r"options\.num_ctx must be"):
        client.embed(MODEL, TEXTS[0], options={"num_ctx": 513})


@pytest.mark.parametrize(("path", "field"), [("embed", "input"), ("embeddings", "prompt")])
def test_the_model_stays_for_as_long_as_asked(path: str, field: str) -> None:
    with live() as site:
        body = {"model": MODEL, field: "a", "keep_alive": 0}
        assert site.post(f"/api/{path}", **body).status_code == 200
        assert eventually(lambda: not site.http.get("/api/ps").json()["models"])


def test_without_a_text_there_is_no_vector(site: Live, client: ollama.Client) -> None:
    assert client.embed(MODEL, []).embeddings == []
    assert site.post("/api/embed", model=MODEL).json()["embeddings"] == []
    assert client.embeddings(MODEL, "").embedding == []


def test_the_older_route_does_not_normalise(client: ollama.Client) -> None:
    found = client.embeddings(MODEL, TEXTS[0])
    assert found.embedding == vector(TEXTS[0], normalize=False).tolist()
    ids = tiny_text().tokenizer.encode(LONG)[:512]
    assert client.embeddings(MODEL, LONG).embedding == vector(ids, normalize=False).tolist()


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"input": "a"}, 400, "model is required"),
        ({"model": "nobody", "input": "a"}, 404, "nobody"),
        ({"model": MODEL, "input": [7]}, 400, "input"),
        ({"model": MODEL, "input": ["a", ""]}, 400, "at least one token"),
        ({"model": MODEL, "input": ["a"] * 9}, 400, "at most 8"),
        ({"model": MODEL, "input": "a", "dimensions": 8}, 400, f"must be {HIDDEN_SIZE}"),
        ({"model": MODEL, "input": "a", "temperature": 1}, 400, "temperature"),
    ],
    ids=str,
)
def test_refusals_are_told_as_ollama_does(site: Live, fields: Any, status: int, said: str) -> None:
    answer = site.post("/api/embed", **fields)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert said in answer.json()["error"]
    assert eventually(site.is_idle)
