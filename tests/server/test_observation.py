"""What the server tells of its requests: time lines, logs, spans, files."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pellucid.config import ObserveSettings, ServerConfig
from pellucid.errors import ConfigError
from pellucid.observe.recording import read_recording
from pellucid.observe.spans import Spans
from tests.server.live import Live, eventually, live

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def observed(**settings: Any) -> ServerConfig:
    return ServerConfig(observe=ObserveSettings(**settings))


def timeline(site: Live, name: str) -> dict[str, Any]:
    response = site.http.get(f"/v1/requests/{name}/timeline")
    assert response.status_code == 200, response.text
    return response.json()


# ---- time lines


def test_a_request_is_found_by_its_answer_and_by_its_request_id(site: Live) -> None:
    response = site.http.post(
        "/v1/completions",
        json={"prompt": [7] * 40, "max_tokens": 5},
        headers={"X-Request-Id": "mine-1"},
    )
    by_answer = timeline(site, response.json()["id"])
    assert timeline(site, "mine-1") == by_answer
    assert by_answer["status"] == 200
    assert not by_answer["is_open"]
    assert by_answer["route"] == "/v1/completions"
    (answer,) = by_answer["answers"]
    assert (answer["prompt_tokens"], answer["output_tokens"]) == (40, 5)
    assert sum(answer["phases"].values()) == pytest.approx(by_answer["seconds"], abs=1e-4)


def test_an_id_may_have_slashes(site: Live) -> None:
    given = {"X-Request-Id": "team/a/7"}
    body = {"prompt": "x", "max_tokens": 1, "request_id": "mine/8"}
    assert site.http.post("/v1/completions", json=body, headers=given).status_code == 200
    by_answer = timeline(site, "cmpl-mine/8")
    assert timeline(site, "team/a/7") == timeline(site, "team%2Fa%2F7") == by_answer


def test_every_answer_has_a_time_line_of_its_own(site: Live) -> None:
    body = {"prompt": [[7] * 40, [8] * 20], "n": 2, "max_tokens": 3}
    told = timeline(site, site.post("/v1/completions", **body).json()["id"])
    assert [a["prompt_tokens"] for a in told["answers"]] == [40, 40, 20, 20]
    assert len({a["id"] for a in told["answers"]}) == 4


def test_the_front_ends_reason_counts_where_it_ended_the_answer(site: Live) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "seed": 3}
    text = site.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
    response = site.post("/v1/chat/completions", **body, stop=text[20:30]).json()
    assert response["choices"][0]["finish_reason"] == "stop"
    assert timeline(site, response["id"])["answers"][0]["finish_reason"] == "stop"


def test_a_request_that_is_still_running_and_one_that_was_left() -> None:
    with live(runner={"step_seconds": 0.02}) as site:
        body = {"prompt": [7] * 4, "max_tokens": 100, "stream": True}
        with site.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # kept: what is collected closes the stream
            name = json.loads(next(lines).removeprefix("data: "))["id"]
            told = timeline(site, name)
            assert told["is_open"]
            assert told["answers"][0]["finish_reason"] is None
            assert told["answers"][0]["summary"].endswith("not finished")
        assert eventually(lambda: not timeline(site, name)["is_open"])
        assert timeline(site, name)["answers"][0]["finish_reason"] == "abort"


def test_only_so_many_are_kept_and_none_if_so_set(site: Live) -> None:
    body = {"prompt": [7], "max_tokens": 1}
    with live(observed(timelines=2)) as other:
        names = [other.post("/v1/completions", **body).json()["id"] for _ in range(3)]
        assert other.http.get(f"/v1/requests/{names[0]}/timeline").status_code == 404
        assert timeline(other, names[2])["id"] == names[2]
    with live(observed(timelines=0)) as other:
        name = other.post("/v1/completions", **body).json()["id"]
        response = other.http.get(f"/v1/requests/{name}/timeline")
        assert response.status_code == 404
        assert "the last 0 are kept" in response.json()["error"]["message"]
    error = site.http.get("/v1/requests/nobody/timeline").json()["error"]
    assert error["code"] == "request_not_found"


# ---- files


def test_a_run_leaves_its_trace_and_its_recording_without_any_text(tmp_path: Path) -> None:
    trace, record = tmp_path / "run.json", tmp_path / "run.rec"
    with live(observed(trace=str(trace), record=str(record))) as site:
        site.post("/v1/completions", prompt="a secret", max_tokens=4)
    events = json.loads(trace.read_bytes())
    assert any(event["name"] == "prefill" for event in events)
    header, steps = read_recording(record)
    shares = [share for step in steps for share in step.shares]
    assert sum(share.num_generated for share in shares) == 4
    assert all(share.block_ids or not share.num_blocks for share in shares)
    assert all(share.token_ids == [] for share in shares)
    assert not header.tokens
    assert b"secret" not in trace.read_bytes() + record.read_bytes()


def test_token_ids_are_recorded_if_asked_for(tmp_path: Path) -> None:
    record = tmp_path / "run.rec"
    with live(observed(record=str(record), record_tokens=True)) as site:
        body = {"prompt": [7], "max_tokens": 4, "return_token_ids": True}
        (choice,) = site.post("/v1/completions", **body).json()["choices"]
    _, steps = read_recording(record)
    assert [t for s in steps for share in s.shares for t in share.token_ids] == choice["token_ids"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("trace", "/nowhere/x"), ("record", "/nowhere/x"), ("otlp_endpoint", "collector:4318")],
)
def test_what_cannot_be_opened_is_a_clear_error_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught, live(observed(**{name: value})):
        pass
    assert caught.value.param == name


# ---- logs


def fields(caplog: pytest.LogCaptureFixture, logger: str) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.name == logger]


def test_one_line_per_request_that_was_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with live() as site:
        body = {"prompt": "a secret", "max_tokens": 4, "n": 2}
        answer = site.post("/v1/completions", **body)
        site.http.get("/health")
        site.post("/v1/completions", prompt=7)
    (line,) = fields(caplog, "pellucid.requests")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["id"] == answer.json()["id"]
    assert (line["status"], line["output_tokens"], line["preemptions"]) == (200, 8, 0)
    assert line["finish_reason"] == "length,length"
    assert 0 <= line["queue"] <= line["seconds"]
    assert "prompts" not in line
    assert fields(caplog, "pellucid.access") == []
    assert "secret" not in caplog.text


def test_prompts_and_accesses_are_logged_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with live(observed(log_prompts=True, access_log=True)) as site:
        site.post("/v1/completions", prompt="a secret", max_tokens=4)
        messages = [{"role": "user", "content": "another"}]
        site.post("/v1/chat/completions", messages=messages, max_tokens=4)
        site.http.get("/nowhere")
    one, two = fields(caplog, "pellucid.requests")
    assert one["prompts"] == ["a secret"]
    assert "another" in two["prompts"][0]
    seen = [
        (line["method"], line["path"], line["status"]) for line in fields(caplog, "pellucid.access")
    ]
    assert seen == [
        ("POST", "/v1/completions", 200),
        ("POST", "/v1/chat/completions", 200),
        ("GET", "/nowhere", 404),
    ]


# ---- spans


@pytest.fixture
def exported() -> Iterator[tuple[Live, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with live() as site:
        ledger = site.server.app.state.models.observation.ledger
        ledger.on_close.append(Spans(provider))
        yield site, exporter


def one_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    assert eventually(lambda: bool(exporter.get_finished_spans()))
    (span,) = exporter.get_finished_spans()
    return span


def test_a_span_by_the_genai_conventions(exported: tuple[Live, InMemorySpanExporter]) -> None:
    site, exporter = exported
    response = site.http.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 5,
            "temperature": 0.5,
            "top_k": 7,
            "stop": ["@@"],
        },
        headers={"traceparent": f"00-{TRACE_ID}-{PARENT}-01"},
    ).json()
    span = one_span(exporter)
    assert span.name == "chat tiny"
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.id": response["id"],
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": response["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.stop_sequences": ("@@",),
        "gen_ai.request.stream": False,
        "http.response.status_code": 200,
    }
    assert span.attributes is not None
    assert {name: span.attributes.get(name) for name in expected} == expected
    moments = [(event.name, event.timestamp) for event in span.events]
    assert [name for name, _ in moments] == ["handed to the engine", "scheduled", "first token"]
    times = [span.start_time, *(when for _, when in moments), span.end_time]
    assert times == sorted(times)


@pytest.mark.parametrize("header", [None, "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_without_a_valid_parent_a_trace_of_its_own(
    exported: tuple[Live, InMemorySpanExporter], header: str | None
) -> None:
    site, exporter = exported
    headers = {"traceparent": header} if header else {}
    site.http.post("/generate", json={"prompt": "x", "stream": True}, headers=headers)
    span = one_span(exporter)
    assert span.parent is None
    assert span.attributes is not None
    assert span.attributes["gen_ai.request.stream"] is True
    assert span.attributes["gen_ai.operation.name"] == "text_completion"


def test_spans_reach_a_collector() -> None:
    paths: list[str] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            paths.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        port = collector.server_address[1]
        with live(observed(otlp_endpoint=f"http://127.0.0.1:{port}")) as site:
            assert site.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200
        collector.shutdown()
        thread.join()
    assert paths == ["/v1/traces"]


def test_an_absent_collector_harms_nobody() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        port = closed.getsockname()[1]
        with live(observed(otlp_endpoint=f"http://127.0.0.1:{port}/v1/traces")) as site:
            assert site.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200


def test_without_its_packages_the_setting_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"pellucid\[otel\]"):
        Spans.to_collector("http://127.0.0.1:4318")
