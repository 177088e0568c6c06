"""The page, the stream behind it, and the load that makes something to look at."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import pellucid.server.page
from pellucid.config import ServerConfig
from pellucid.server import xray
from tests.server.live import MODEL, Live, eventually, live

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
    """Reads /xray/events of a server on a thread, and keeps what the page would keep."""

    def __init__(self, site: Live, model: str | None = None) -> None:
        self.blocks: dict[int, tuple[list[int], bool]] = {}
        self.requests: dict[int, str] = {}  # phase by number
        self.seen: set[int] = set()
        self.steps: list[Any] = []
        self.engines: list[dict[str, Any]] = []
        self.pool: list[int] = []
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
        self._thread.join(10)

    def _run(self) -> None:
        with httpx.stream("GET", self._url, params=self._params, timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line:
                    self._read(json.loads(line.removeprefix("data: ")))
                if self._stop.is_set():
                    return

    def _read(self, message: dict[str, Any]) -> None:
        if engine := message.get("engine"):
            self.engines.append(engine)
            self.blocks, self.requests = {}, {}
        window = message.get("window", {})
        for number, _, phase, *_ in window.get("requests", []):
            self.requests[number] = phase
            self.seen.add(number)
        for number, *_ in window.get("ended", []):
            self.requests.pop(number, None)
            self.seen.add(number)
        for block, holders, is_named in window.get("blocks", []):
            self.blocks[block] = (holders, is_named)
        self.steps += window.get("steps", [])
        self.pool = window.get("pool", self.pool)

    def num_held(self) -> int:
        return sum(bool(holders) for holders, _ in self.blocks.values())


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
            phases = list(stream.requests.values())
            used = slow.metric("vllm:kv_cache_usage_perc") * 512
            return (
                phases.count("running") == slow.metric("vllm:num_requests_running") == 4
                and phases.count("queued") == slow.metric("vllm:num_requests_waiting") == 4
                and stream.num_held() == stream.pool[0] == round(used) > 0
            )

        assert eventually(agrees)
        assert any(len(holders) > 1 for holders, _ in stream.blocks.values())
        answers.close()
        assert eventually(slow.is_idle)
        assert eventually(lambda: not stream.requests and stream.num_held() == 0)
        assert len(stream.seen) == 8
        numbers = [step[0] for step in stream.steps]
        assert numbers == sorted(set(numbers))


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
        assert listeners() == 3
    assert eventually(lambda: listeners() == 1)


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
        ) | {"kernels": "", "dtype": ""}
        for _ in range(2):
            site.post("/v1/completions", model="two", prompt="x", max_tokens=3)
            assert eventually(lambda: stream.engines[-1]["is_loaded"])
            assert site.post("/v1/models/unload", model="two").status_code == 200
            assert eventually(lambda: not stream.engines[-1]["is_loaded"])


# ---- the load


def test_a_load_is_as_many_requests_as_it_says(slow: Live) -> None:
    with Stream(slow) as stream:
        done = slow.post("/xray/load", clients=8).json()
        assert done["clients"] == 8
        assert done["completion_tokens"] > 8
        assert eventually(lambda: len(stream.seen) == 8)
        assert slow.metric("vllm:prefix_cache_hits_total") > 0


@pytest.mark.parametrize("clients", [0, 33, "8", None])
def test_a_load_is_bounded(site: Live, clients: object) -> None:
    refused = site.post("/xray/load", clients=clients)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "clients"


def test_there_is_one_load_at_a_time_and_it_ends_with_who_asked(slow: Live) -> None:
    first = threading.Thread(target=lambda: give_up(slow))
    first.start()
    assert eventually(lambda: slow.metric("vllm:num_requests_running") == 4)
    assert slow.post("/xray/load", clients=8).status_code == 409
    first.join()
    assert eventually(slow.is_idle)
    assert slow.post("/xray/load", clients=1).status_code == 200


def give_up(site: Live) -> None:
    with pytest.raises(httpx.ReadTimeout):
        site.http.post("/xray/load", json={"clients": 32}, timeout=0.5)


# ---- who may


def test_only_the_bare_files_need_no_key() -> None:
    with live(gateway={"api_key": [KEY]}) as site:
        assert site.http.get("/", headers=HTML).status_code == 200
        assert site.http.get("/page/app.js").status_code == 200
        for path in ("/", "/page/", "/page/nothing", "/xray/events", "/v1/models"):
            assert site.http.get(path).status_code == 401, path
        assert site.http.post("/", headers=HTML).status_code == 401
        assert site.post("/xray/load", clients=8).status_code == 401
        bearer = {"Authorization": f"Bearer {KEY}"}
        with site.http.stream("GET", "/xray/events", headers=bearer) as answer:
            assert answer.status_code == 200


def test_page_and_stream_can_be_turned_off() -> None:
    with live(ServerConfig(page=False)) as site:
        assert site.http.get("/", headers=HTML).json()["model"] == MODEL
        for path in ("/page/app.js", "/xray/events"):
            assert site.http.get(path).status_code == 404
        assert site.post("/xray/load", clients=8).status_code == 404


def test_an_open_page_does_not_hold_up_the_end() -> None:
    with live() as site, Stream(site) as stream:
        site.loop.call_soon_threadsafe(site.server.stop)
        stream._thread.join(5)
        assert not stream._thread.is_alive()
