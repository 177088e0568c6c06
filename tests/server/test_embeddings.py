"""/v1/embeddings through the openai client, and its refusals."""

from __future__ import annotations

import base64
import threading
from typing import Any

import numpy as np
import openai
import pytest

from pellucid.config import ServerConfig
from pellucid.messages import Pooling
from pellucid.runner.fake import HIDDEN_SIZE, expected_embedding
from tests.frontend.tiny import tiny_text
from tests.server.live import MODEL, Live, eventually, leaving, live

TEXTS = ["Once upon a time", "there was a little engine", "naïve café, 東京 🙂"]


def vector(
    text: str | list[int], pooling: Pooling = "last", *, normalize: bool = True
) -> np.ndarray:
    ids = tiny_text().tokenizer.encode(text) if isinstance(text, str) else text
    raw = np.frombuffer(expected_embedding(ids, pooling), "<f4")
    return raw / np.linalg.norm(raw) if normalize else raw


@pytest.mark.parametrize("encoding_format", ["float", None], ids=str)
def test_the_client_gets_a_vector_for_each_text(site: Live, encoding_format: Any) -> None:
    """Without a format the client asks for base64 and decodes it."""
    chosen = {"encoding_format": encoding_format} if encoding_format else {}
    client = site.openai()
    found = client.embeddings.create(model=MODEL, input=TEXTS, user="somebody", **chosen)
    assert (found.object, found.model) == ("list", MODEL)
    assert [each.index for each in found.data] == [0, 1, 2]
    for each, text in zip(found.data, TEXTS, strict=True):
        assert np.array_equal(np.array(each.embedding, np.float32), vector(text))
    count = sum(len(tiny_text().tokenizer.encode(text)) for text in TEXTS)
    assert found.usage.prompt_tokens == found.usage.total_tokens == count
    assert found.model_extra == {}, "nothing that the API does not have"
    assert found.data[0].model_extra == {}


def test_all_four_forms_of_the_input(site: Live) -> None:
    ids = [5, 6, 7]
    for given, expected in (
        (TEXTS[0], [vector(TEXTS[0])]),
        (TEXTS[:2], [vector(text) for text in TEXTS[:2]]),
        (ids, [vector(ids)]),
        ([ids, [9]], [vector(ids), vector([9])]),
    ):
        found = site.openai().embeddings.create(model=MODEL, input=given)
        assert [each.embedding for each in found.data] == [each.tolist() for each in expected]


def test_the_fields_of_our_own(site: Live) -> None:
    def embed(**fields: Any) -> np.ndarray:
        answer = site.post("/v1/embeddings", input=TEXTS[2], **fields)
        return np.array(answer.json()["data"][0]["embedding"], np.float32)

    assert np.array_equal(embed(pooling="mean"), vector(TEXTS[2], "mean"))
    assert np.array_equal(embed(normalize=False), vector(TEXTS[2], normalize=False))
    ids = tiny_text().tokenizer.encode(TEXTS[2])
    assert np.array_equal(embed(truncate_prompt_tokens=4), vector(ids[-4:]))
    assert np.array_equal(embed(dimensions=HIDDEN_SIZE, add_special_tokens=False), vector(ids))


def test_base64_is_of_little_endian_float32(site: Live) -> None:
    answer = site.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64").json()
    data = base64.b64decode(answer["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(data, "<f4"), vector(TEXTS[0]))


def test_the_server_chooses_the_pooling_where_the_request_does_not() -> None:
    with live(ServerConfig(pooling="mean")) as site:
        found = site.openai().embeddings.create(model=MODEL, input=TEXTS[0])
        assert found.data[0].embedding == vector(TEXTS[0], "mean").tolist()


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "input", "required"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [[]]}, "input", "at least one token"),
        ({"input": ["a", 3]}, "input", "mix"),
        ({"input": ["a"] * 9}, "input", "at most 8"),
        ({"input": [600]}, "input", "600"),
        ({"input": [7] * 513}, "input", "512 tokens. However, input has 513 tokens"),
        ({"input": "a", "dimensions": 16}, "dimensions", f"must be {HIDDEN_SIZE}"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "int8"),
        ({"input": "a", "pooling": "max"}, "pooling", "max"),
        ({"input": "a", "priority": 1}, "priority", "fifo"),
        ({"input": "a", "timeout": 0}, "timeout", "above 0"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"input": "a", "temperature": 0.5}, "temperature", "unknown"),
    ],
    ids=str,
)
def test_refusals_name_the_field(site: Live, fields: Any, param: str, said: str) -> None:
    answer = site.post("/v1/embeddings", **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]
    assert eventually(site.is_idle)


def test_a_prompt_may_fill_the_context(site: Live) -> None:
    found = site.openai().embeddings.create(model=MODEL, input=[7] * 512)
    assert found.data[0].embedding == vector([7] * 512).tolist()


def test_an_unknown_model_is_a_404(site: Live) -> None:
    with pytest.raises(openai.NotFoundError):
        site.openai().embeddings.create(model="nobody", input="a")


def test_metrics_and_the_time_line_tell_of_it() -> None:
    with live() as site:
        answer = site.post("/v1/embeddings", input=TEXTS, pooling="mean")
        count = answer.json()["usage"]["prompt_tokens"]
        assert eventually(lambda: site.metric("vllm:prompt_tokens_total") == count)
        assert site.metric("vllm:request_success_total", finished_reason="stop") == 3
        assert site.metric("vllm:generation_tokens_total") == 0
        assert site.metric("http_requests_total", handler="/v1/embeddings", status="2xx") == 1
        request_id = answer.headers["x-request-id"]
        timeline = site.http.get(f"/v1/requests/{request_id}/timeline").json()
        assert timeline["route"] == "/v1/embeddings"
        assert [each["finish_reason"] for each in timeline["answers"]] == ["stop"] * 3
        assert sum(each["prompt_tokens"] for each in timeline["answers"]) == count
        assert "prefill" in timeline["answers"][0]["summary"]


def test_the_answer_cache_keeps_vectors_by_their_pooling() -> None:
    with live(gateway={"cache": "memory"}) as site:

        def embed(**fields: Any) -> tuple[str, Any]:
            answer = site.post("/v1/embeddings", input=TEXTS[0], **fields)
            return answer.headers["x-pellucid-cache"], answer.json()["data"][0]["embedding"]

        first = embed()
        assert first == ("miss", vector(TEXTS[0]).tolist())
        assert eventually(lambda: embed() == ("hit", first[1]))
        assert embed(pooling="mean") == ("miss", vector(TEXTS[0], "mean").tolist())
        assert embed(normalize=False) == ("hit", vector(TEXTS[0], normalize=False).tolist())
        assert embed(cache=False) == ("bypass", first[1])


def test_limits_of_rate_queue_and_time_hold() -> None:
    with live(gateway={"rate_limit_tokens": 10}) as site:
        assert site.post("/v1/embeddings", input=[5] * 8).status_code == 200
        refused = site.post("/v1/embeddings", input=[5] * 8)
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            429,
            "rate_limit_exceeded",
        )
    with live(runner={"step_seconds": 0.3}, max_num_seqs=1, max_waiting=1) as site:
        refused = site.post("/v1/embeddings", input=["a", "b", "c"])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
        late = site.post("/v1/embeddings", input=["a", "b"], timeout=0.1)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert eventually(site.is_idle)


def test_a_client_that_leaves_frees_the_engine() -> None:
    with live(runner={"step_seconds": 0.2}, max_chunk_tokens=4) as site:
        with leaving(site.url, "/v1/embeddings", input=[[5] * 400, [6] * 400]):
            assert eventually(lambda: site.metric("vllm:num_requests_running") == 2)
        assert eventually(site.is_idle), "100 steps of 0.2 s are left"
        assert eventually(
            lambda: site.metric("vllm:request_success_total", finished_reason="abort") == 2
        )


def test_vectors_and_answers_run_at_the_same_time(site: Live) -> None:
    results: dict[int, Any] = {}

    def ask(index: int) -> None:
        client = site.openai()
        if index % 2:
            text = f"text {index}"
            found = client.embeddings.create(model=MODEL, input=text)
            results[index] = found.data[0].embedding == vector(text).tolist()
        else:
            answer = client.completions.create(model=MODEL, prompt="Hello", seed=1, max_tokens=40)
            results[index] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(results[index] for index in range(1, 12, 2))
    assert len({results[index] for index in range(0, 12, 2)}) == 1
