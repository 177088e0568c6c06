"""`bench serve` against a server whose delays and faults are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pellucid.bench.client import SSEParser
from pellucid.bench.load import LoadReport
from pellucid.bench.serving import bench_server, plain_settings
from pellucid.bench.settings import LoadSettings
from pellucid.errors import ConfigError, PellucidError
from tests.bench.fake_server import Behaviour, fake_server


def bench(behaviour: Behaviour, api_key: str | None = None, **settings: Any) -> LoadReport:
    defaults: dict[str, Any] = {"num_prompts": 4, "input_len": 8, "output_len": 5, "warmup": 0}
    with fake_server(behaviour):
        load = LoadSettings(**{**defaults, "base_url": behaviour.url, **settings})
        return bench_server(load, api_key)


def test_times_are_the_servers() -> None:
    # 80 ms to the first of 6 tokens, then 20 ms each.
    behaviour = Behaviour(first_token=0.08, per_token=0.02)
    report = bench(behaviour, num_prompts=6, output_len=6)
    assert (report.completed, report.failed) == (6, 0)
    assert report.ttft_ms is not None
    assert report.itl_ms is not None
    assert report.tpot_ms is not None
    assert report.e2e_ms is not None
    assert report.itl_ms.count == 6 * 5
    # How late a loaded machine is adds to these, and to the parts as much as to the whole.
    assert report.ttft_ms.p50 >= 79
    assert report.e2e_ms.p50 >= 179
    parts = report.ttft_ms.mean + 5 * report.itl_ms.mean
    assert report.e2e_ms.mean == pytest.approx(parts, rel=0.02)
    assert report.tpot_ms.mean == pytest.approx(report.itl_ms.mean, rel=0.02)
    assert report.ttft_ms.p50 <= report.ttft_ms.p95 <= report.ttft_ms.p99 <= report.ttft_ms.max
    assert report.output_tokens == 36
    assert report.prompt_tokens == 42
    assert report.output_tokens_per_s == pytest.approx(36 / report.seconds)
    assert report.client_cpu_share > 0


def test_failures_are_counted_with_their_reasons() -> None:
    faults = {0: "429", 1: "drop before", 2: "drop midway", 3: "error event", 4: "end midway"}
    report = bench(Behaviour(faults=faults), num_prompts=8)
    assert (report.completed, report.failed) == (3, 5)
    assert report.failures["HTTP 429: the queue is full"] == 1
    assert report.failures["in the stream: the engine died"] == 1
    assert report.failures["the stream ended early"] == 1
    assert (
        sum(count for reason, count in report.failures.items() if "RemoteProtocol" in reason) == 2
    )
    assert report.output_tokens == 3 * 5  # of the complete answers only
    assert report.ttft_ms is not None
    assert report.ttft_ms.count == 3


def test_every_request_failing_is_a_report_without_latencies() -> None:
    report = bench(Behaviour(faults=dict.fromkeys(range(4), "429")))
    assert (report.completed, report.failed) == (0, 4)
    assert report.ttft_ms is None
    assert report.output_tokens_per_s == 0


def test_max_concurrency_holds_and_waiting_is_reported() -> None:
    behaviour = Behaviour(first_token=0.05)
    report = bench(behaviour, num_prompts=6, max_concurrency=2)
    assert behaviour.most_in_flight == 2
    assert report.wait_ms is not None
    assert report.wait_ms.max >= 100  # the third pair waited for two others
    assert report.ttft_ms is not None
    assert report.ttft_ms.max < 2 * report.wait_ms.max


def test_connections_are_used_again() -> None:
    behaviour = Behaviour()
    bench(behaviour, num_prompts=8, max_concurrency=1)
    assert len(behaviour.clients) == 1


def test_requests_carry_what_was_asked() -> None:
    behaviour = Behaviour()
    bench(behaviour, ignore_eos=True, temperature=0.5, api_key="sk-test", input_len=8)
    body = behaviour.bodies[0]
    assert body["model"] == "tiny"
    assert body["max_tokens"] == 5
    assert body["temperature"] == 0.5
    assert body["ignore_eos"] is True
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert behaviour.headers[0]["Authorization"] == "Bearer sk-test"


def test_random_prompts_are_ids_where_the_server_takes_them() -> None:
    behaviour = Behaviour()
    bench(behaviour, input_len=8, shared_prefix=3, vocab_size=2000, seed=1)
    prompts = [body["prompt"] for body in behaviour.bodies]
    assert all(len(prompt) == 8 and all(0 <= i < 2000 for i in prompt) for prompt in prompts)
    assert len({tuple(prompt[:3]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 4
    again = Behaviour()
    bench(again, input_len=8, shared_prefix=3, vocab_size=2000, seed=1)
    assert sorted(prompts) == sorted(body["prompt"] for body in again.bodies)


@pytest.mark.parametrize(
    ("settings", "owner"),
    [({}, "somebody"), ({"endpoint": "chat"}, "pellucid"), ({"prompts": "words"}, "pellucid")],
)
def test_random_prompts_are_words_elsewhere(settings: dict[str, Any], owner: str) -> None:
    behaviour = Behaviour(owner=owner)
    report = bench(behaviour, **settings)
    assert report.completed == 4
    body = behaviour.bodies[0]
    text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    assert len(text.split()) == 8
    assert body["path"] == ("/v1/chat/completions" if "messages" in body else "/v1/completions")


def test_dataset_is_sent_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": "one"}, {"prompt": "two", "max_tokens": 3}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    behaviour = Behaviour()
    bench(behaviour, dataset=str(file), num_prompts=3, max_concurrency=1)
    sent = [(body["prompt"], body["max_tokens"]) for body in behaviour.bodies]
    assert sent == [("one", 5), ("two", 3), ("one", 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": 3}', "line 2"),
        ('{"max_tokens": 3}', "needs either `prompt` or `messages`"),
        ("{", "line 1"),
    ],
)
def test_bad_dataset_names_the_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        bench(Behaviour(), dataset=str(file))


def test_without_usage_chunks_are_counted() -> None:
    report = bench(Behaviour(usage=False))
    assert report.without_usage == 4
    assert report.output_tokens == 4 * 5


def test_goodput_counts_what_kept_every_limit() -> None:
    behaviour = Behaviour(first_token=0.05)
    strict = bench(behaviour, goodput=["ttft:1"])
    assert strict.goodput is not None
    assert strict.goodput["requests"] == 0
    lenient = bench(Behaviour(), goodput=["ttft:10000", "tpot:10000", "e2e:10000"])
    assert lenient.goodput is not None
    assert lenient.goodput["requests"] == 4
    assert lenient.goodput["requests_per_s"] == pytest.approx(4 / lenient.seconds)
    assert lenient.goodput["tpot_limit_ms"] == 10000


@pytest.mark.parametrize("limit", ["ttft", "ttft:", "ttft:fast", "ttft:-1", "ttft:nan", "speed:1"])
def test_bad_goodput_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match="--goodput"):
        bench(Behaviour(), goodput=[limit])


def test_failing_warm_up_ends_it_with_the_servers_reason() -> None:
    with pytest.raises(PellucidError, match="the queue is full"):
        bench(Behaviour(faults={0: "429"}), warmup=1)


def test_warm_up_is_not_measured() -> None:
    behaviour = Behaviour()
    report = bench(behaviour, warmup=2)
    assert len(behaviour.bodies) == 6
    assert report.completed == 4


def test_silent_server_is_a_failure() -> None:
    report = bench(Behaviour(first_token=1.0), num_prompts=1, timeout=0.2, max_concurrency=1)
    assert report.failures == {"ReadTimeout": 1}


def test_no_server_is_an_error() -> None:
    with pytest.raises(PellucidError, match="does not answer"):
        bench_server(LoadSettings(base_url="http://127.0.0.1:9"), None)


def test_base_url_may_end_in_v1() -> None:
    behaviour = Behaviour()
    with fake_server(behaviour):
        load = LoadSettings(base_url=behaviour.url + "/v1/", num_prompts=1, warmup=0)
        assert bench_server(load, None).completed == 1


def test_settings_are_plain_json() -> None:
    assert plain_settings(LoadSettings())["request_rate"] == "inf"
    json.dumps(plain_settings(LoadSettings()), allow_nan=False)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_sse_parser_does_not_care_where_reads_end(size: int) -> None:
    stream = b': hello\r\n\r\ndata: {"a": 1}\r\n\r\ndata:{"b": 2}\n\nevent: x\ndata: [DONE]\n\n'
    parser = SSEParser()
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    payloads = [payload for piece in pieces for payload in parser.feed(piece)]
    assert payloads == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]
