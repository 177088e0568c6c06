"""Clients that hang up, engines that die, queues that fill and deadlines that pass."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from typing import Any

import httpx
import pytest

from pellucid.messages import TokenDelta
from pellucid.sampling_params import NOTHING_LEFT
from pellucid.server.routes import tokens
from tests.frontend.tiny import ScriptedClient
from tests.server.live import Live, eventually, leaving, live

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True}
STREAMING = pytest.mark.parametrize("stream", [True, False])


class Call:
    """A request that runs on a thread, to be looked at while it does.

    `begun` is set when the head of the answer is there: of a stream, with its first token.
    """

    def __init__(self, site: Live, path: str, **body: Any) -> None:
        self.response: httpx.Response | None = None
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(site, path, body))
        self._thread.start()

    def result(self) -> httpx.Response:
        self._thread.join(60)
        assert self.response is not None
        return self.response

    def _run(self, site: Live, path: str, body: dict[str, Any]) -> None:
        with httpx.stream("POST", site.url + path, json=body, timeout=60) as response:
            self.begun.set()
            response.read()
        self.response = response


def events_of(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


# ---- clients that hang up


@STREAMING
@pytest.mark.parametrize("path", [TEXT, CHAT, "/generate"])
def test_a_client_that_hangs_up_aborts_its_request(
    scripted: Live, script: ScriptedClient, path: str, stream: bool
) -> None:
    with leaving(scripted.url, path, prompt="x", stream=stream):
        assert eventually(lambda: len(script.added) == 1)
        assert script.aborted == []
    (added,) = script.added
    assert eventually(lambda: script.aborted == [[added.request_id]])


def test_all_prompts_and_answers_of_a_client_that_hangs_up_are_aborted(
    scripted: Live, script: ScriptedClient
) -> None:
    with leaving(scripted.url, TEXT, prompt=["a", "b"], n=2, stream=True):
        assert eventually(lambda: len(script.added) == 4)
    added = sorted(message.request_id for message in script.added)
    assert eventually(lambda: sorted(i for ids in script.aborted for i in ids) == added)


def test_a_client_that_hangs_up_in_the_middle_of_a_stream_aborts_its_request(
    scripted: Live, script: ScriptedClient
) -> None:
    def speak() -> None:
        assert eventually(lambda: len(script.added) == 1)
        delta = TokenDelta(request_id=script.added[0].request_id, token_ids=[70])
        scripted.call(lambda: script.feed(delta))

    speaker = threading.Thread(target=speak)
    speaker.start()
    body = {"prompt": "x", "stream": True}
    with httpx.stream("POST", scripted.url + TEXT, json=body) as response:
        parts = response.iter_text()  # httpx hangs up when this is dropped
        assert next(parts).startswith("data: ")
        assert script.aborted == []
    speaker.join()
    assert eventually(lambda: script.aborted == [[script.added[0].request_id]])


def test_two_hundred_clients_that_hang_up_leave_no_block_in_use() -> None:
    async def hang_up(client: httpx.AsyncClient, index: int) -> None:
        """Half of them once they see the first token, half without having seen anything."""
        body = {**LONG, "prompt": f"Chapter {index}", "stream": index % 2 == 0}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if body["stream"] else 0.5):
                async with client.stream("POST", TEXT, json=body) as response:
                    await anext(response.aiter_raw())
                assert body["stream"], "a whole answer within half a second"

    async def crowd(url: str) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
            await asyncio.gather(*(hang_up(client, index) for index in range(200)))

    # An answer takes 25 s at the least, so whoever ends it hung up long before.
    with live(runner={"step_seconds": 0.05}, num_kv_blocks=2048) as site:
        asyncio.run(crowd(site.url))
        assert eventually(site.is_idle)
        assert site.metric("vllm:request_success_total", finished_reason="length") == 0
        assert site.post(TEXT, prompt="Hello", max_tokens=1).status_code == 200
        assert site.metric("vllm:request_success_total", finished_reason="abort") > 0
        load = site.http.get("/metrics", headers={"Accept": "application/json"}).json()
        assert load["active_streams"] == 0


# ---- engines that die


@STREAMING
def test_an_engine_that_dies_before_the_first_token_is_a_503(
    scripted: Live, script: ScriptedClient, stream: bool
) -> None:
    call = Call(scripted, CHAT, prompt="x", stream=stream)
    assert eventually(lambda: len(script.added) == 1)
    scripted.call(script.die)
    response = call.result()
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "engine_dead_error"
    assert "scripted" not in response.text  # what killed it is for the log alone
    assert scripted.post(CHAT, prompt="x", stream=stream).status_code == 503
    health = scripted.http.get("/health")
    assert health.status_code == 503
    assert health.json()["error"]["type"] == "engine_dead_error"


@pytest.mark.parametrize("path", [TEXT, CHAT, "/generate"])
def test_an_engine_that_dies_during_a_stream_ends_it_with_an_error_event(
    scripted: Live, script: ScriptedClient, path: str
) -> None:
    call = Call(scripted, path, prompt="x", stream=True)
    assert eventually(lambda: len(script.added) == 1)
    delta = TokenDelta(request_id=script.added[0].request_id, token_ids=[70])
    scripted.call(lambda: script.feed(delta))
    assert call.begun.wait(30)
    scripted.call(script.die)
    response = call.result()
    assert response.status_code == 200
    *before, last = events_of(response)
    assert before
    assert json.loads(last)["error"]["type"] == "engine_dead_error"


# ---- queues and deadlines


def test_a_full_queue_is_a_429_that_says_when_to_come_back() -> None:
    with (
        live(runner={"step_seconds": 0.05}, max_num_seqs=1, max_waiting=1) as site,
        leaving(site.url, TEXT, **LONG),
        leaving(site.url, TEXT, **LONG),
    ):
        assert eventually(lambda: site.llm.num_unfinished == 2)
        response = site.post(TEXT, prompt="x")
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "overloaded_error"
        assert site.post(TEXT, prompt="x", stream=True).status_code == 429


def test_prompts_that_were_queued_before_one_that_does_not_fit_are_withdrawn() -> None:
    with (
        live(runner={"step_seconds": 0.02}, max_num_seqs=2, max_waiting=2) as site,
        leaving(site.url, TEXT, **LONG),
    ):
        assert eventually(lambda: site.llm.num_unfinished == 1)
        assert site.post(TEXT, prompt=["a"] * 4, max_tokens=400).status_code == 429
        assert site.llm.num_unfinished == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_before_the_first_token_is_a_504(stream: bool) -> None:
    with live(runner={"step_seconds": 0.02}, max_num_seqs=1) as site:
        with leaving(site.url, TEXT, **LONG):
            assert eventually(lambda: site.metric("vllm:num_requests_running") == 1)
            response = site.post(TEXT, **LONG | {"stream": stream, "timeout": 0.2})
        assert response.status_code == 504
        assert response.json()["error"]["type"] == "timeout_error"


def test_a_deadline_during_a_stream_is_an_error_event() -> None:
    with live(runner={"step_seconds": 0.02}) as site:
        response = site.post(TEXT, **LONG | {"stream": True, "timeout": 2})
        assert response.status_code == 200
        *before, last = events_of(response)
        assert len(before) > 1
        assert json.loads(last)["error"]["type"] == "timeout_error"
        assert site.is_idle()
        assert site.metric("vllm:request_success_total", finished_reason="timeout") == 1


# ---- bugs


def test_a_bug_is_a_500_that_tells_the_log_everything_and_the_client_nothing(
    site: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret: /home/operator")

    monkeypatch.setattr(tokens, "_token_ids", broken)
    with caplog.at_level(logging.ERROR):
        response = site.http.post(
            "/tokenize", json={"prompt": "x"}, headers={"X-Request-Id": "find-me"}
        )
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "internal_error"
    assert "secret" not in response.text
    assert "find-me" in error["message"]
    assert "find-me" in caplog.text
    assert "secret: /home/operator" in caplog.text


def test_an_engine_that_cannot_finish_an_answer_is_a_500(
    scripted: Live, script: ScriptedClient
) -> None:
    call = Call(scripted, TEXT, prompt="x")
    assert eventually(lambda: len(script.added) == 1)
    failed = TokenDelta(
        request_id=script.added[0].request_id,
        token_ids=[],
        finish_reason="error",
        error="out of luck",
    )
    scripted.call(lambda: script.feed(failed))
    response = call.result()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "out of luck"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [5], "bad_words": ["a"]}, "allowed_token_ids"),
        ({"min_tokens": 1, "stop_token_ids": [5]}, "min_tokens"),
    ],
)
def test_fields_that_leave_no_token_are_a_400(
    scripted: Live, script: ScriptedClient, fields: dict[str, Any], param: str
) -> None:
    call = Call(scripted, TEXT, prompt="x", **fields)
    assert eventually(lambda: len(script.added) == 1)
    failed = TokenDelta(
        request_id=script.added[0].request_id,
        token_ids=[],
        finish_reason="error",
        error=NOTHING_LEFT,
    )
    scripted.call(lambda: script.feed(failed))
    response = call.result()
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_server_that_stops_lets_streams_finish() -> None:
    with live(runner={"step_seconds": 0.01}) as site:
        call = Call(site, TEXT, prompt="Once", max_tokens=50, stream=True)
        assert eventually(lambda: site.llm.num_unfinished == 1)
        site.call(site.server.stop)
        assert events_of(call.result())[-1] == "[DONE]"


def test_a_server_that_cannot_wait_any_longer_tells_its_streams() -> None:
    with live(runner={"step_seconds": 0.02}, gateway={"drain_timeout": 1}) as site:
        call = Call(site, TEXT, **LONG | {"stream": True})
        assert eventually(lambda: site.llm.num_unfinished == 1)
        assert call.begun.wait(30)
        site.call(site.server.stop)
        *_, last = events_of(call.result())
        assert json.loads(last)["error"]["type"] == "shutting_down_error"
