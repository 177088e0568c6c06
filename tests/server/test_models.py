"""Several models in one server: who is loaded when, who goes, and who notices."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pellucid.config import MIB, EngineConfig, HostingSettings, ObserveSettings, ServerConfig
from pellucid.engine.client import EngineClient, ProcessClient
from pellucid.errors import ConfigError, ModelError
from pellucid.messages import EngineInfo
from pellucid.server.models import loading, registry
from tests.frontend.tiny import fake_client
from tests.server.live import Live, eventually, leaving, live
from tests.server.test_failures import Call

TEXT = "/v1/completions"
ONE = {"prompt": "x", "max_tokens": 1}
LONG = {"prompt": "x", "max_tokens": 100, "ignore_eos": True}
CONFIG = EngineConfig.of(runner="fake")


class Fleet:
    """Makes the engines of a server's models, and can make that take long or fail."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.open: Counter[str] = Counter()
        self.seconds = 0.0  # that a start takes
        self.holding = False  # no start ends
        self.failure: Exception | None = None
        self.weights: dict[str, int] = {}  # MiB
        self.step_seconds = 0.02

    def make(self, name: str) -> EngineClient:
        fleet, client = self, fake_client(CONFIG, step_seconds=self.step_seconds)
        start, close = client.start, client.close

        async def slow_start() -> EngineInfo:
            fleet.started.append(name)
            await asyncio.sleep(fleet.seconds)
            while fleet.holding:
                await asyncio.sleep(0.01)
            if fleet.failure is not None:
                raise fleet.failure
            info = await start()
            fleet.open[name] += 1
            weights = fleet.weights.get(name, 200) * MIB
            return msgspec.structs.replace(info, weight_bytes=weights)

        async def counted_close() -> None:
            if client.alive:
                fleet.open[name] -= 1
            await close()

        client.start, client.close = slow_start, counted_close  # type: ignore[method-assign]
        return client


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@contextmanager
def serving(fleet: Fleet, *names: str, **hosting: Any) -> Iterator[Live]:
    config = ServerConfig(hosting=HostingSettings(**hosting))
    with live(config, models=names or ("a", "b"), make_client=fleet.make) as site:
        yield site
    assert not +fleet.open, "engines were left"


def states(site: Live) -> dict[str, str]:
    listed = site.http.get("/v1/models").json()["data"]
    return {model["id"]: model["status"] for model in listed}


def ask(site: Live, name: str, **body: Any) -> httpx.Response:
    return site.post(TEXT, **{"model": name, **ONE, **body})


# ---- routing and loading


def test_requests_go_to_the_model_they_name_which_is_loaded_for_them(fleet: Fleet) -> None:
    with serving(fleet) as site:
        assert states(site) == {"a": "loaded", "b": "unloaded"}
        assert site.post(TEXT, **ONE).json()["model"] == "a"
        assert states(site) == {"a": "loaded", "b": "unloaded"}
        assert ask(site, "b").json()["model"] == "b"
        assert states(site) == {"a": "loaded", "b": "loaded"}
        for name in ("a", "b"):
            assert site.metric("vllm:generation_tokens_total", model_name=name) == 1
        error = ask(site, "c").json()["error"]
        assert error["code"] == "model_not_found"
        assert "'a', 'b'" in error["message"]


def test_models_are_described_whether_loaded_or_not(fleet: Fleet) -> None:
    with serving(fleet) as site:
        one, other = site.http.get("/v1/models").json()["data"]
        assert (one["root"], one["max_model_len"]) == ("a.gguf", 512)
        assert (other["root"], other["max_model_len"]) == ("b.gguf", None)
        assert site.http.get("/v1/models/b").json() == other
        assert fleet.started == ["a"]  # who looks loads nothing
        with site.openai() as client:
            assert [model.id for model in client.models.list()] == ["a", "b"]


def test_requests_that_come_together_load_a_model_once(fleet: Fleet) -> None:
    with serving(fleet) as site:
        fleet.holding = True
        calls = [Call(site, TEXT, model="b", **ONE) for _ in range(8)]
        assert eventually(lambda: states(site)["b"] == "loading")
        assert ask(site, "a").status_code == 200  # others do not wait
        assert states(site)["b"] == "loading"
        fleet.holding = False
        assert {call.result().status_code for call in calls} == {200}
        assert fleet.started == ["a", "b"]


def test_a_model_that_fails_to_load_is_told_by_name_and_tried_again(fleet: Fleet) -> None:
    with serving(fleet) as site:
        for failure in (ModelError("/home/operator is damaged"), RuntimeError("/home/operator")):
            fleet.failure = failure
            response = ask(site, "b")
            assert response.status_code == 503
            assert "'b'" in response.json()["error"]["message"]
            assert "operator" not in response.text
            assert states(site) == {"a": "loaded", "b": "failed"}
        assert site.http.get("/ready").status_code == 200
        assert site.metric("pellucid_model_loads_total", model_name="b", outcome="failed") == 2
        fleet.failure = None
        assert ask(site, "b").status_code == 200
        assert states(site)["b"] == "loaded"


def test_a_load_that_takes_too_long_is_given_up_and_tried_again(fleet: Fleet) -> None:
    with serving(fleet, load_timeout=0.2) as site:
        fleet.holding = True
        response = ask(site, "b")
        assert response.status_code == 503
        assert "0.2 s" in response.json()["error"]["message"]
        fleet.holding = False
        assert eventually(lambda: ask(site, "b").status_code == 200)


def test_a_requests_own_deadline_holds_while_it_waits_for_a_model(fleet: Fleet) -> None:
    with serving(fleet) as site:
        fleet.seconds = 1.2
        response = ask(site, "b", timeout=0.1)
        assert response.status_code == 504
        assert "'b'" in response.json()["error"]["message"]
        assert ask(site, "b").status_code == 200
        assert fleet.started == ["a", "b"]
        site.post("/v1/models/unload", model="b")
        # What loading took is gone for the answer, which takes 1 s.
        assert ask(site, "b", **LONG | {"max_tokens": 50}, timeout=1.6).status_code == 504


def test_a_client_that_leaves_while_its_model_is_loaded_does_not_hold_it(fleet: Fleet) -> None:
    with serving(fleet) as site:
        fleet.holding = True
        with leaving(site.url, TEXT, model="b", **ONE):
            assert eventually(lambda: site.call(site.models.listing)[1].num_open == 1)
        assert eventually(lambda: site.call(site.models.listing)[1].num_open == 0)
        assert states(site)["b"] == "loading"
        fleet.holding = False
        assert eventually(lambda: states(site)["b"] == "loaded")


# ---- unloading


def test_models_are_loaded_and_unloaded_by_request(fleet: Fleet) -> None:
    with serving(fleet) as site:
        assert site.post("/v1/models/load", model="b").json()["status"] == "loaded"
        for name in ("a", "a", "b"):
            assert site.post("/v1/models/unload", model=name).json()["status"] == "unloaded"
        assert not +fleet.open
        assert site.http.get("/ready").status_code == 200
        assert site.post(TEXT, **ONE).json()["model"] == "a"  # the default comes back, too
        assert site.post("/v1/models/unload", model="c").status_code == 404
        assert site.post("/v1/models/load", model="c").status_code == 404
        assert site.post("/v1/models/load").json()["error"]["param"] == "model"


def test_a_model_in_use_is_not_unloaded(fleet: Fleet) -> None:
    with serving(fleet, keep_alive=0.05) as site:
        call = Call(site, TEXT, model="b", stream=True, **LONG)
        assert eventually(lambda: states(site)["b"] == "loaded")
        assert site.http.get("/load").json() == {"server_load": 1}
        response = site.post("/v1/models/unload", model="b")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "model_busy")
        time.sleep(0.3)  # many times its keep-alive
        assert states(site) == {"a": "unloaded", "b": "loaded"}
        assert call.result().text.endswith("data: [DONE]\n\n")
        assert eventually(lambda: states(site)["b"] == "unloaded")
        assert site.http.get("/load").json() == {"server_load": 0}


def test_idle_models_go_after_a_while_but_not_the_first(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "KEEP_ALIVE_SECONDS", 4)
    with serving(fleet) as site:
        assert ask(site, "b").status_code == 200
        first, second = site.call(site.models.listing)
        assert first.expires_at is None
        assert time.time() < (second.expires_at or 0) < time.time() + 4.1
        assert eventually(lambda: states(site) == {"a": "loaded", "b": "unloaded"})
        assert eventually(lambda: fleet.open["b"] == 0)  # its engine ends a little later


def test_keep_alive_can_be_set_for_a_model_until_it_is_unloaded(fleet: Fleet) -> None:
    with serving(fleet, keep_alive=-1) as site:
        ask(site, "b")
        assert site.call(site.models.listing)[1].expires_at is None
        site.call(lambda: site.models.set_keep_alive("b", 1e300))
        assert (site.call(site.models.listing)[1].expires_at or 0) > time.time() + 1e8
        site.call(lambda: site.models.set_keep_alive("b", 0))
        assert eventually(lambda: states(site)["b"] == "unloaded")
        ask(site, "b")
        assert site.call(site.models.listing)[1].expires_at is None
        site.call(lambda: [site.models.set_keep_alive("b", seconds) for seconds in (0, None)])
        time.sleep(0.1)
        assert states(site)["b"] == "loaded"


# ---- memory


def test_the_least_recently_used_idle_model_makes_room(fleet: Fleet) -> None:
    with serving(fleet, "a", "b", "c", model_memory_gib=1.5) as site:  # of 600 MiB each
        ask(site, "b")
        ask(site, "a")
        assert ask(site, "c").status_code == 200
        assert states(site) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
        ask(site, "b")
        assert states(site) == {"a": "unloaded", "b": "loaded", "c": "loaded"}
        one, other = site.call(site.models.listing)[1:]
        assert one.held == other.held == 600 * MIB


def test_who_finds_no_room_waits_and_is_told_what_is_in_the_way(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ROOM_SECONDS", 0.3)
    with serving(fleet, model_memory_gib=1) as site:
        call = Call(site, TEXT, model="a", stream=True, **LONG)
        assert eventually(lambda: site.llm.num_unfinished == 1)
        response = ask(site, "b")
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert "'b'" in response.json()["error"]["message"]
        assert "'a'" in response.json()["error"]["message"]
        assert states(site) == {"a": "loaded", "b": "unloaded"}
        monkeypatch.setattr(loading, "ROOM_SECONDS", 10)
        assert ask(site, "b").status_code == 200  # at the end of the stream
        assert call.result().text.endswith("data: [DONE]\n\n")
        assert states(site) == {"a": "unloaded", "b": "loaded"}


def test_a_model_that_never_fits_is_an_error_with_budget_and_need(fleet: Fleet) -> None:
    with (
        pytest.raises(ConfigError, match=r"'a' needs about 0\.39 GiB.*0\.25 GiB"),
        serving(fleet, model_memory_gib=0.25),
    ):
        pass
    fleet.weights["b"] = 2048  # more than its file said
    with serving(fleet, model_memory_gib=1.5) as site:
        for _ in range(2):
            response = ask(site, "b")
            assert response.status_code == 503
            assert "'b' needs about 2.39 GiB" in response.json()["error"]["message"]
            assert "1.5 GiB" in response.json()["error"]["message"]
        assert fleet.open["b"] == 0
        assert ask(site, "a").status_code == 200


def test_a_model_that_takes_more_than_was_thought_makes_room_for_itself(fleet: Fleet) -> None:
    fleet.weights["c"] = 900
    with serving(fleet, "a", "b", "c", model_memory_gib=2.2) as site:
        ask(site, "b")
        assert ask(site, "c").status_code == 200  # 600 + 600 + 1300, thought to be 956
        assert states(site) == {"a": "unloaded", "b": "loaded", "c": "loaded"}


# ---- engines that die, servers that stop


def real_engine(name: str) -> EngineClient:
    return ProcessClient(EngineConfig.of(runner="fake"))


def engine_pids(site: Live) -> dict[str, int]:
    return {s.llm.model_name: s.llm.info.pid for s in site.call(lambda: list(site.models.loaded))}


def test_an_engine_that_is_killed_is_replaced_and_others_do_not_notice() -> None:
    with live(models=("a", "b"), make_client=real_engine, clients=lambda: real_engine("")) as site:
        ask(site, "b")
        before = engine_pids(site)
        psutil.Process(before["b"]).kill()
        assert eventually(lambda: states(site)["b"] == "loading")
        assert ask(site, "a").status_code == 200
        assert site.http.get("/ready").status_code == 200
        assert eventually(lambda: states(site)["b"] == "loaded", 20)
        after = engine_pids(site)
        assert after["a"] == before["a"]
        assert after["b"] != before["b"]
        assert ask(site, "b").status_code == 200


def test_an_engine_that_died_for_good_is_a_failed_model_that_can_be_loaded(
    fleet: Fleet,
) -> None:
    gateway = {"engine_restarts": 0}
    with live(
        models=("a", "b"), make_client=real_engine, clients=lambda: real_engine(""), gateway=gateway
    ) as site:
        ask(site, "b")
        psutil.Process(engine_pids(site)["b"]).kill()
        assert eventually(lambda: states(site) == {"a": "loaded", "b": "failed"})
        assert ask(site, "a").status_code == 200
        assert ask(site, "b").status_code == 200
        psutil.Process(engine_pids(site)["a"]).kill()
        assert eventually(lambda: states(site) == {"a": "failed", "b": "loaded"})
        assert site.http.get("/ready").status_code == 503
        assert ask(site, "a").status_code == 200
        assert site.http.get("/ready").status_code == 200


def test_a_server_that_stops_leaves_no_engine_behind() -> None:
    with live(models=("a", "b"), make_client=real_engine) as site:
        ask(site, "b")
        engines = [psutil.Process(pid) for pid in engine_pids(site).values()]
        assert len(engines) == 2
    assert psutil.wait_procs(engines, timeout=30)[1] == []


def test_a_server_that_stops_does_not_wait_for_a_model_to_load(fleet: Fleet) -> None:
    fleet_gateway = {"drain_timeout": 0.3}
    with live(models=("a", "b"), make_client=fleet.make, gateway=fleet_gateway) as site:
        fleet.holding = True
        call = Call(site, TEXT, model="b", **ONE)
        assert eventually(lambda: states(site)["b"] == "loading")
        site.call(site.server.stop)
        response = call.result()
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "shutting_down_error"
    assert not +fleet.open


# ---- what is seen, and what is shared


def samples(site: Live) -> Counter[tuple[str, frozenset[tuple[str, str]]]]:
    text = site.http.get("/metrics").text
    kinds = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    return Counter(
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def test_metrics_of_all_models_are_one_document(fleet: Fleet) -> None:
    with serving(fleet) as site:
        for action in ("load", "load", "unload", "load"):
            site.post(f"/v1/models/{action}", model="b")
            ask(site, "a")
            found = samples(site)
            assert set(found.values()) == {1}
            running = {
                dict(labels)["model_name"]
                for name, labels in found
                if name == "vllm:num_requests_running"
            }
            assert running == ({"a"} if action == "unload" else {"a", "b"})
            assert site.metric("pellucid_model_loaded", model_name="b") == (action == "load")
        assert site.metric("vllm:request_params_n_count", model_name="a") == 4
        summary = site.http.get("/metrics", headers={"Accept": "application/json"}).json()
        assert summary["active_streams"] == 0


def test_cached_answers_belong_to_a_model(fleet: Fleet) -> None:
    gateway = {"cache": "memory"}
    with live(models=("a", "b"), make_client=fleet.make, gateway=gateway) as site:
        seen = []
        for name in ("a", "b", "a", "b"):
            response = ask(site, name, temperature=0)
            assert response.json()["model"] == name
            seen.append(response.headers["x-pellucid-cache"])
        assert seen == ["miss", "miss", "hit", "hit"]


def test_time_lines_outlive_their_model(fleet: Fleet) -> None:
    with serving(fleet) as site:
        name = ask(site, "b").json()["id"]
        site.post("/v1/models/unload", model="b")
        told = site.http.get(f"/v1/requests/{name}/timeline").json()
        assert told["answers"][0]["output_tokens"] == 1


def test_each_model_and_each_loading_has_a_file_of_its_own(fleet: Fleet, tmp_path: Path) -> None:
    config = ServerConfig(observe=ObserveSettings(trace=str(tmp_path / "run.json")))
    with live(config, models=("a", "org/b"), make_client=fleet.make) as site:
        for _ in range(2):
            ask(site, "org/b")
            site.post("/v1/models/unload", model="org/b")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run.a.json", "run.org%2Fb.json", "run.org%2Fb.2.json"}
    assert all("prefill" in path.read_text() for path in tmp_path.glob("*b*"))


def test_what_fails_after_the_engine_started_leaves_no_engine(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "run.b.json").mkdir()  # where its trace would be
    config = ServerConfig(observe=ObserveSettings(trace=str(tmp_path / "run.json")))
    with live(config, models=("a", "b"), make_client=fleet.make) as site:
        assert ask(site, "b").status_code == 503
        assert fleet.started == ["a", "b"]
        assert fleet.open["b"] == 0


def test_two_models_of_one_name_are_refused(fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="NAME=SOURCE"), serving(fleet, "a", "a"):
        pass


def test_many_clients_of_models_that_push_each_other_out_all_get_answers(fleet: Fleet) -> None:
    fleet.step_seconds = 0.001
    statuses: list[int] = []
    with serving(fleet, "a", "b", "c", model_memory_gib=1, keep_alive=0) as site:

        def client(number: int) -> None:
            for turn in range(6):
                response = ask(site, "abc"[(number + turn) % 3], stream=turn % 2 == 0)
                statuses.append(response.status_code)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert statuses == [200] * 36
        assert eventually(lambda: set(states(site).values()) == {"unloaded"})
