"""Engines that die and come back, servers that are told to stop, and what clients see of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator

import openai
import pytest

from pellucid.config import EngineConfig
from pellucid.errors import EngineDead, ModelError
from pellucid.frontend import supervisor
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.supervisor import Supervisor, warm_up
from pellucid.messages import AddRequest, Command, EngineInfo, TokenDelta
from pellucid.sampling_params import SamplingParams
from tests.frontend.tiny import ScriptedClient, fake_client, tiny_text
from tests.server.live import Live, eventually, leaving, live
from tests.server.test_failures import CHAT, LONG, TEXT, Call, events_of

CONFIG = EngineConfig.of(runner="fake")
STREAMING = pytest.mark.parametrize("stream", [True, False])


class Engines:
    """The engines that a server had and has, oldest first."""

    def __init__(self) -> None:
        self.all = [ScriptedClient()]

    def another(self) -> ScriptedClient:
        self.all.append(ScriptedClient())
        return self.all[-1]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.2)
    return Engines()


@pytest.fixture
def supervised(engines: Engines) -> Iterator[Live]:
    with live(client=engines.all[0], clients=engines.another) as site:
        yield site


def answer(added: AddRequest, *tokens: int, ends: bool = True) -> TokenDelta:
    reason = "length" if ends else None
    return TokenDelta(request_id=added.request_id, token_ids=list(tokens), finish_reason=reason)


# ---- engines that die


@STREAMING
def test_a_request_without_a_token_goes_to_the_next_engine(
    supervised: Live, engines: Engines, stream: bool
) -> None:
    call = Call(supervised, TEXT, prompt="x", stream=stream)
    assert eventually(lambda: len(engines.all[0].added) == 1)
    supervised.call(engines.all[0].die)
    assert eventually(lambda: len(engines.all) == 2 and len(engines.all[1].added) == 1)
    (again,) = engines.all[1].added
    assert again == engines.all[0].added[0]  # its seed, too
    supervised.call(lambda: engines.all[1].feed(answer(again, 70, 71)))
    response = call.result()
    assert response.status_code == 200
    assert tiny_text().tokenizer.decode([70, 71]) in response.text


def test_a_request_with_a_token_ends_with_an_error(supervised: Live, engines: Engines) -> None:
    call = Call(supervised, TEXT, prompt=["x", "y"], stream=True)
    assert eventually(lambda: len(engines.all[0].added) == 2)
    first = answer(engines.all[0].added[0], 70, ends=False)
    supervised.call(lambda: engines.all[0].feed(first))
    assert call.begun.wait(30)
    supervised.call(engines.all[0].die)
    *before, last = events_of(call.result())
    assert before
    assert json.loads(last)["error"]["type"] == "engine_dead_error"
    assert eventually(lambda: supervised.llm.alive)
    time.sleep(0.05)
    assert engines.all[1].added == []  # nor does its other half live on
    assert supervised.llm.num_unfinished == 0


def test_a_whole_answer_that_had_begun_is_a_503_that_says_when_to_come_back(
    supervised: Live, engines: Engines
) -> None:
    call = Call(supervised, TEXT, prompt="x")
    assert eventually(lambda: len(engines.all[0].added) == 1)
    supervised.call(lambda: engines.all[0].feed(answer(engines.all[0].added[0], 70, ends=False)))
    supervised.call(engines.all[0].die)
    response = call.result()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert "being started again" in response.text


def test_who_comes_meanwhile_is_told_when_to_come_back(supervised: Live, engines: Engines) -> None:
    assert supervised.http.get("/ready").status_code == 200
    supervised.call(engines.all[0].die)
    assert eventually(lambda: supervised.llm.retry_after is not None)
    with supervised.openai() as client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="tiny", prompt="x")
    assert caught.value.status_code == 503
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 10
    for path in ("/ready", "/health"):
        probe = supervised.http.get(path)
        assert probe.status_code == 503
        assert "retry-after" in probe.headers
    assert supervised.http.get("/live").status_code == 200
    assert eventually(lambda: supervised.http.get("/ready").status_code == 200)
    assert supervised.gateway.counts.engine_restarts == 1
    assert engines.all[0].closed


@STREAMING
def test_a_request_that_kills_every_engine_is_tried_once_more(
    supervised: Live, engines: Engines, stream: bool
) -> None:
    call = Call(supervised, CHAT, prompt="x", stream=stream)
    for index in range(2):
        assert eventually(lambda i=index: len(engines.all) > i and len(engines.all[i].added) == 1)
        supervised.call(engines.all[index].die)
    response = call.result()
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "engine_dead_error"


def test_a_deadline_holds_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 3.0)
    engines = Engines()
    with live(client=engines.all[0], clients=engines.another) as site:
        call = Call(site, TEXT, prompt="x", timeout=0.5)
        assert eventually(lambda: len(engines.all[0].added) == 1)
        site.call(engines.all[0].die)
        assert call.result().status_code == 504
        assert site.llm.num_unfinished == 0


def test_a_client_that_leaves_meanwhile_is_forgotten(engines: Engines) -> None:
    may_start = threading.Event()

    class HeldEngine(ScriptedClient):
        async def start(self) -> EngineInfo:
            while not may_start.is_set():
                await asyncio.sleep(0.01)
            return await super().start()

    def another() -> ScriptedClient:
        engines.all.append(HeldEngine())
        return engines.all[-1]

    with live(client=engines.all[0], clients=another) as site:
        stays = Call(site, TEXT, prompt="stays")
        assert eventually(lambda: len(engines.all[0].added) == 1)
        with leaving(site.url, TEXT, model="tiny", prompt="leaves"):
            assert eventually(lambda: len(engines.all[0].added) == 2)
            site.call(engines.all[0].die)
            assert eventually(lambda: site.llm.retry_after is not None)
        assert eventually(lambda: site.llm.num_unfinished == 1)
        may_start.set()
        assert eventually(lambda: len(engines.all) == 2 and len(engines.all[1].added) >= 1)
        (again,) = engines.all[1].added
        site.call(lambda: engines.all[1].feed(answer(again, 70)))
        assert stays.result().status_code == 200


def test_engines_that_fail_in_a_row_are_started_ever_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delays: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        await real_sleep(0)

    class Failing(ScriptedClient):
        async def start(self) -> EngineInfo:
            raise ModelError("the disk is gone")

    async def body() -> None:
        first = ScriptedClient()
        async with AsyncLLM(CONFIG, first, text=tiny_text(), retries=9) as llm:
            waiting = await llm.submit([70], SamplingParams())
            watch = Supervisor(llm, 7, make_client=Failing, warm=False)
            monkeypatch.setattr(supervisor.asyncio, "sleep", sleep)
            first.die()
            with pytest.raises(EngineDead, match="8 times in a row"):
                await watch.run()
            await llm.close(EngineDead("given up"))
            with pytest.raises(EngineDead, match="given up"):
                await anext(waiting)

    asyncio.run(asyncio.wait_for(body(), 10))
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_an_engine_that_dies_of_its_warm_up_counts_as_failed() -> None:
    class Fragile(ScriptedClient):
        def send(self, command: Command) -> None:
            super().send(command)
            self.die()

    async def body() -> None:
        first = ScriptedClient()
        async with AsyncLLM(CONFIG, first, text=tiny_text(), retries=3) as llm:
            watch = Supervisor(llm, 1, make_client=Fragile)
            first.die()
            with pytest.raises(EngineDead, match="2 times in a row"):
                await watch.run()

    asyncio.run(asyncio.wait_for(body(), 10))


def test_warming_up_takes_the_whole_path() -> None:
    async def body() -> None:
        async with AsyncLLM(CONFIG, fake_client(CONFIG), text=tiny_text()) as llm:
            await warm_up(llm)
        async with AsyncLLM(CONFIG, fake_client(CONFIG, max_model_len=4), text=tiny_text()) as llm:
            await warm_up(llm)  # nothing fits: no reason not to serve
        dead = ScriptedClient()
        async with AsyncLLM(CONFIG, dead, text=tiny_text(), retries=3) as llm:
            asyncio.get_running_loop().call_later(0.05, dead.die)
            with pytest.raises(EngineDead):
                await warm_up(llm)

    asyncio.run(asyncio.wait_for(body(), 10))


# ---- servers that are told to stop


@STREAMING
def test_a_draining_server_finishes_what_is_open_and_refuses_the_rest(stream: bool) -> None:
    with live(runner={"step_seconds": 0.02}) as site:
        call = Call(site, TEXT, prompt="Once", max_tokens=60, ignore_eos=True, stream=stream)
        assert eventually(lambda: site.llm.num_unfinished == 1)
        site.call(site.server.stop)
        refused = site.post(TEXT, prompt="x")
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "shutting_down_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 25
        assert refused.headers["connection"] == "close"
        assert site.http.get("/ready").status_code == 503
        assert site.http.get("/live").status_code == 200
        response = call.result()
        assert response.status_code == 200
        if stream:
            assert events_of(response)[-1] == "[DONE]"
        else:
            assert response.json()["usage"]["completion_tokens"] == 60


@STREAMING
def test_beyond_the_deadline_open_requests_end_with_an_error(stream: bool) -> None:
    with live(runner={"step_seconds": 0.02}, gateway={"drain_timeout": 0.5}) as site:
        call = Call(site, TEXT, **LONG | {"stream": stream})
        assert eventually(lambda: site.llm.num_unfinished == 1)
        assert not stream or call.begun.wait(30)
        site.call(site.server.stop)
        response = call.result()
        if stream:
            error = json.loads(events_of(response)[-1])["error"]
        else:
            assert response.status_code == 503
            error = response.json()["error"]
        assert error["type"] == "shutting_down_error"


def test_stopping_twice_does_not_wait() -> None:
    # An answer of minutes, and as long a time to finish it.
    with live(runner={"step_seconds": 0.5}, gateway={"drain_timeout": 200}) as site:
        call = Call(site, TEXT, **LONG | {"stream": True})
        assert call.begun.wait(30)
        site.call(site.server.stop)
        began = time.monotonic()
        site.call(site.server.stop)
    assert time.monotonic() - began < 100
    call._thread.join(60)


def test_an_idle_server_stops_at_once() -> None:
    with live() as site:
        site.call(site.server.stop)
        assert eventually(lambda: site.server.should_exit, seconds=15)  # of 25 for who is busy
