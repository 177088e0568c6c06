"""The page, the stream behind it, and the load that makes something to look at."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import pellucid.server.page
from pellucid.config import ServerConfig
from pellucid.engine import events
from pellucid.server import xray
from pellucid.server.load import MAX_CLIENTS
from tests.engine.replay import Replay
from tests.observe.trace_format import check_format
from tests.server.live import MODEL, Live, eventually, leaving, live

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ASSETS = sorted(
    path.name
    for path in Path(pellucid.server.page.__file__).parent.iterdir()
    if path.suffix in pellucid.server.page.TYPES
)
KEY = "sk-a-long-enough-key"


def test_browsers_get_a_page_and_others_the_index(site: Live) -> None:
    page = site.http.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<!doctype html>" in page.text
    assert site.http.get("/").json()["model"] == MODEL
    assert site.http.head("/", headers=HTML).headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in ASSETS)])
def test_a_file_may_load_nothing_and_run_nothing_from_elsewhere(site: Live, path: str) -> None:
    answer = site.http.get(path, headers=HTML)
    assert answer.status_code == 200
    parts = answer.headers["content-security-policy"].split("; ")
    policy = dict(part.split(" ", 1) for part in parts)
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    outside = re.findall(r"https?://[^\"'\s)`]+|//[a-z]+\.[a-z]", answer.text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}  # a name, never fetched
    inline = r"\sstyle=|\son[a-z]+=|<script>|<style|javascript:|innerHTML|insertAdjacentHTML"
    assert re.findall(inline + r"|document\.write|\beval\(|new Function", answer.text) == []


def test_all_that_the_page_names_is_there(site: Live) -> None:
    named = set()
    for name in ASSETS:
        text = site.http.get(f"/page/{name}").text
        named |= set(re.findall(r'(?:href|src)="page/([^"]+)"', text))
        named |= set(re.findall(r'from "\./([^"]+)"', text))
    assert named == set(ASSETS) - {"index.html"}
    assert site.http.get("/page/__init__.py").status_code == 404
    assert site.http.get("/page/../page/app.js%00").status_code == 404


# ---- the stream


class Stream:
    """Reads /xray/events of a server on a thread, and rebuilds the engine's state from them."""

    def __init__(self, site: Live, model: str | None = None) -> None:
        self.state = Replay()
        self.seen: set[int] = set()
        self.ids: set[str] = set()
        self.steps: list[int] = []
        self.engines: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.pool = events.Pool(0, 0, 0)
        self.lock = threading.Lock()
        self._url = f"{site.url}/xray/events"
        self._params = {"model": model} if model else {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stream:
        self._thread.start()
        assert eventually(lambda: bool(self.engines))
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        with httpx.stream("GET", self._url, params=self._params, timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line:
                    with self.lock:
                        self._read(json.loads(line.removeprefix("data: ")))
                if self._stop.is_set():
                    return

    def _read(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if engine := message.get("engine"):
            self.engines.append(engine)
            self.state = Replay()
        for row in message.get("part", {}).get("steps", []):
            step = msgspec.convert(row, events.StepEvents)
            self.state.apply(step)
            self.ids |= {queued.request_id for queued in step.queued}
            self.seen |= self.state.requests.keys() | {queued.number for queued in step.queued}
            self.pool = step.pool
            self.steps += [step.step] if step.shares else []

    def last(self, field: str) -> Any:
        """Of the last message that has it."""
        return next((m[field] for m in reversed(self.messages) if field in m), None)

    def held(self) -> dict[int, int]:
        """Reference counts of the blocks that are held."""
        with self.lock:
            tables = [seen.table for seen in self.state.requests.values()]
        return dict(Counter(block for table in tables for block in table))


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    with live(runner={"step_seconds": 0.01, "num_blocks": 512}, max_num_seqs=4) as running:
        yield running


def test_the_streams_counts_are_those_of_metrics(slow: Live) -> None:
    prompts = [[7] * 40 + [nth] * 20 for nth in range(8)]
    body = {"prompt": prompts, "max_tokens": 400, "ignore_eos": True, "model": MODEL}
    with Stream(slow) as stream, slow.openai() as client:
        answers = client.completions.create(**body_of(body), stream=True)

        def agrees() -> bool:
            running = [seen.is_running for seen in list(stream.state.requests.values())]
            used = slow.metric("vllm:kv_cache_usage_perc") * 512
            return (
                running.count(True) == slow.metric("vllm:num_requests_running") == 4
                and running.count(False) == slow.metric("vllm:num_requests_waiting") == 4
                and len(stream.held()) == stream.pool.num_used == round(used) > 0
            )

        assert eventually(agrees)
        assert max(stream.held().values()) > 1
        answers.close()
        assert eventually(slow.is_idle)
        assert eventually(lambda: not stream.state.requests)
        assert len(stream.seen) == 8
        assert stream.steps == sorted(set(stream.steps))


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The official client's arguments: what OpenAI has not goes into `extra_body`."""
    extra = {"ignore_eos": fields["ignore_eos"]}
    known = {name: value for name, value in fields.items() if name not in extra}
    return {**known, "extra_body": extra}


def test_nothing_is_computed_when_nobody_reads(slow: Live) -> None:
    def listeners() -> int:
        return slow.call(lambda: len(slow.llm.events._listeners))

    assert eventually(lambda: listeners() == 1)  # the time lines
    with Stream(slow), Stream(slow):
        assert listeners() == 2  # both read from one feed
    assert eventually(lambda: listeners() == 1)


def test_who_looks_at_an_idle_engine_sees_it_at_once(slow: Live) -> None:
    slow.post("/v1/completions", prompt="x" * 200, max_tokens=2, model=MODEL)
    assert eventually(slow.is_idle)
    kv = slow.call(lambda: slow.llm._client._core.scheduler.kv)
    for _ in range(2):  # also where others watch already
        with Stream(slow) as first, Stream(slow) as stream:
            both = (first, stream)
            assert eventually(lambda: all(one.last("part") for one in both))  # noqa: B023
            assert stream.state.named == set(kv.named_blocks())
            assert stream.state.named
            assert (stream.pool.num_used, stream.state.requests) == (0, {})


def test_readers_are_told_of_the_machine(slow: Live) -> None:
    with Stream(slow) as stream:
        assert eventually(lambda: sum("machine" in m for m in stream.messages) > 1)
        machine = stream.last("machine")
        assert 0 <= machine["cpu_percent"] <= 100
        assert 0 < machine["memory_bytes"] < machine["memory_total"]
        assert [one["name"] for one in machine["processes"]] == ["frontend"]  # it runs the engine
        assert machine["processes"][0]["memory_bytes"] > 1 << 20


def test_a_trace_of_what_is_kept_can_be_had_while_somebody_watches(slow: Live) -> None:
    assert eventually(lambda: slow.http.get("/xray/export").status_code == 404, 30)
    with Stream(slow) as stream:
        body = {"prompt": ["a", "b"], "max_tokens": 5, "ignore_eos": True, "model": MODEL}
        assert slow.post("/v1/completions", **body).status_code == 200
        assert eventually(lambda: len(stream.seen) == 2 and not stream.state.requests)
        answer = slow.http.get("/xray/export")
    assert answer.headers["content-disposition"].startswith("attachment")
    check_format(answer.json())
    requests = [e["args"] for e in answer.json() if "output_tokens" in e.get("args", {})]
    assert [args["output_tokens"] for args in requests] == [5, 5]
    assert sum(e["name"].startswith("step ") for e in answer.json()) >= 5
    assert slow.http.get("/xray/export", params={"model": "x"}).status_code == 404


def test_a_reader_who_does_not_read_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.observe.xray.MAX_STEPS", 16)
    monkeypatch.setattr("pellucid.engine.recorder.events.SNAPSHOT_STEPS", 16)
    with live(runner={"num_blocks": 2048}) as site, socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", httpx.URL(site.url).port or 0))
        stuck.sendall(b"GET /xray/events HTTP/1.1\r\nHost: x\r\n\r\n")
        xrays = site.server.app.state.xrays
        assert eventually(lambda: site.call(lambda: xrays.num_readers) == 1)
        with Stream(site) as stream:
            body = {"prompt": ["a"] * 16, "max_tokens": 500, "ignore_eos": True, "model": MODEL}
            assert site.post("/v1/completions", **body).status_code == 200
            assert eventually(lambda: bool(stream.steps) and not stream.state.requests)


def test_readers_and_models_are_limited(slow: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xray, "MAX_READERS", 1)
    with Stream(slow):
        refused = slow.http.get("/xray/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert slow.http.get("/xray/events", params={"model": "x"}).status_code == 404


def test_a_model_is_followed_through_its_unloading() -> None:
    with live(models=("one", "two")) as site, Stream(site, "two") as stream:
        assert stream.engines[-1] == {"model": "two", "is_loaded": False} | dict.fromkeys(
            ("num_kv_blocks", "block_size", "max_num_seqs"), 0
        ) | {"kernels": "", "dtype": "", "tensor_parallel_size": 1}
        for _ in range(2):
            site.post("/v1/completions", model="two", prompt="x", max_tokens=3)
            assert eventually(lambda: stream.engines[-1]["is_loaded"])
            assert site.post("/v1/models/unload", model="two").status_code == 200
            assert eventually(lambda: not stream.engines[-1]["is_loaded"])


# ---- the load


def test_a_load_is_as_many_requests_as_it_says(slow: Live) -> None:
    with Stream(slow) as stream:
        done = slow.post("/xray/load", clients=8).json()
        assert (done["clients"], done["answered"], done["is_running"]) == (8, 8, False)
        assert done["completion_tokens"] > 8
        assert eventually(lambda: stream.last("load") == done)
        assert eventually(lambda: len(stream.seen) == 8)
        assert slow.metric("vllm:prefix_cache_hits_total") > 0


@pytest.mark.parametrize("clients", [0, MAX_CLIENTS + 1, "8", None])
def test_a_load_is_bounded(site: Live, clients: object) -> None:
    refused = site.post("/xray/load", clients=clients)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "clients"


def test_whom_the_queue_refuses_is_counted_as_refused() -> None:
    with live(max_num_seqs=2, max_waiting=3, runner={"step_seconds": 0.01}) as site:
        with Stream(site) as stream:
            done = site.post("/xray/load", clients=40).json()
        assert done["answered"] + done["refused"] == 40
        assert done["answered"] >= 5
        assert done["refused"] == site.metric(
            "pellucid_refused_requests_total", reason="queue_full"
        )
        assert done["refused"] > 0
        assert "queue" in done["why"]
        assert len(stream.seen) == done["answered"]
        timelines = [
            site.http.get(f"/v1/requests/{seen_id}/timeline").json()
            for seen_id in sorted({name.rsplit("-", 1)[0] for name in stream.ids})
        ]
        assert all(one["answers"][0]["finish_reason"] for one in timelines)
        assert not site.call(lambda: site.models.observation.ledger._open)


def test_there_is_one_load_at_a_time_and_it_ends_with_who_asked(slow: Live) -> None:
    with leaving(slow.url, "/xray/load", clients=32):
        assert eventually(lambda: slow.metric("vllm:num_requests_running") == 4)
        assert slow.post("/xray/load", clients=8).status_code == 409
    assert eventually(slow.is_idle)
    assert slow.post("/xray/load", clients=1).status_code == 200


# ---- who may


def test_only_the_bare_files_need_no_key() -> None:
    with live(gateway={"api_key": [KEY]}) as site:
        assert site.http.get("/", headers=HTML).status_code == 200
        assert site.http.get("/page/app.js").status_code == 200
        for path in ("/", "/page/", "/page/x", "/xray/events", "/xray/export", "/v1/models"):
            assert site.http.get(path).status_code == 401, path
        assert site.http.post("/", headers=HTML).status_code == 401
        assert site.post("/xray/load", clients=8).status_code == 401
        bearer = {"Authorization": f"Bearer {KEY}"}
        with site.http.stream("GET", "/xray/events", headers=bearer) as answer:
            assert answer.status_code == 200


def test_page_and_stream_can_be_turned_off() -> None:
    with live(ServerConfig(page=False)) as site:
        assert site.http.get("/", headers=HTML).json()["model"] == MODEL
        for path in ("/page/app.js", "/xray/events", "/xray/export"):
            assert site.http.get(path).status_code == 404
        assert site.post("/xray/load", clients=8).status_code == 404


def test_an_open_page_does_not_hold_up_the_end() -> None:
    with live() as site, Stream(site) as stream:
        site.loop.call_soon_threadsafe(site.server.stop)
        stream._thread.join(60)
        assert not stream._thread.is_alive()
