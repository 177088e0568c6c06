"""/metrics as Prometheus reads it, and the summary for people."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pellucid.config import EngineConfig
from pellucid.engine.client import ProcessClient
from pellucid.server.draft_metrics import DraftMetrics
from pellucid.server.metrics import one_two_five
from tests.frontend.tiny import ScriptedClient
from tests.server.live import MODEL, Live, eventually, live

TTFT = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
TTFT += [20, 40, 80, 160, 640, 2560]
ITL = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20]
ITL += [40, 80]
WHOLE = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960]
WHOLE += [1920, 7680]
TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500]
BUCKETS = {
    "time_to_first_token_seconds": TTFT,
    "inter_token_latency_seconds": ITL,
    "request_time_per_output_token_seconds": ITL,
    "e2e_request_latency_seconds": WHOLE,
    "request_queue_time_seconds": WHOLE,
    "request_inference_time_seconds": WHOLE,
    "request_prefill_time_seconds": WHOLE,
    "request_decode_time_seconds": WHOLE,
    "request_prompt_tokens": TOKENS,
    "request_generation_tokens": TOKENS,
    "request_max_num_generation_tokens": TOKENS,
    "request_params_max_tokens": TOKENS,
    "request_prefill_kv_computed_tokens": TOKENS,
    "iteration_tokens_total": [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
    "request_params_n": [1, 2, 5, 10, 20],
}
COUNTERS = [
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "request_success",
    "prompt_tokens_by_source",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
    "spec_decode_num_accepted_tokens_per_pos",
]
GAUGES = [
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "cache_config_info",
]


def families(site: Live) -> dict[str, Metric]:
    response = site.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def test_names_types_labels_and_buckets_are_vllms(site: Live) -> None:
    found = families(site)
    for name in GAUGES:
        assert found[f"vllm:{name}"].type == "gauge"
    for name in COUNTERS:
        assert found[f"vllm:{name}"].type == "counter"
    for name, bounds in BUCKETS.items():
        family = found[f"vllm:{name}"]
        assert family.type == "histogram"
        buckets = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
        assert buckets == [*bounds, math.inf], name
    for name, family in found.items():
        if name.startswith("vllm:"):
            for sample in family.samples:
                assert sample.labels["model_name"] == MODEL
                assert sample.labels["engine"] == "0"


def test_a_request_is_counted_once_everywhere() -> None:
    with live() as site:
        body: dict[str, Any] = {"prompt": [7] * 40, "max_tokens": 10, "seed": 1}
        for _ in range(2):
            assert site.post("/v1/completions", **body).status_code == 200
        assert site.post("/v1/completions", **body, n=3).status_code == 200
        expected = {
            "prompt_tokens_total": 40 * 5,
            "prompt_tokens_cached_total": 32 * 4,
            "prefix_cache_hits_total": 32 * 4,
            "generation_tokens_total": 10 * 5,
            "request_prompt_tokens_count": 5,
            "request_prompt_tokens_sum": 40 * 5,
            "request_prefill_kv_computed_tokens_sum": 40 + 8 * 4,
            "request_generation_tokens_sum": 10 * 5,
            "request_params_max_tokens_sum": 10 * 5,
            "request_params_n_sum": 1 + 1 + 3,
            "request_params_n_count": 3,
            "time_to_first_token_seconds_count": 5,
            "inter_token_latency_seconds_count": 9 * 5,
            "e2e_request_latency_seconds_count": 5,
            "request_queue_time_seconds_count": 5,
            "request_time_per_output_token_seconds_count": 5,
            "iteration_tokens_total_sum": 40 + 8 * 4 + 10 * 5,
            "kv_cache_usage_perc": 0,
            "num_requests_running": 0,
        }
        assert {name: site.metric(f"vllm:{name}") for name in expected} == expected
        for source, count in {"local_compute": 40 + 8 * 4, "local_cache_hit": 32 * 4}.items():
            assert site.metric("vllm:prompt_tokens_by_source_total", source=source) == count
        reasons = {"length": 5.0, "stop": 0.0, "abort": 0.0, "error": 0.0, "timeout": 0.0}
        for reason, count in reasons.items():
            assert site.metric("vllm:request_success_total", finished_reason=reason) == count


def test_guesses_are_counted_by_their_position() -> None:
    registry = CollectorRegistry()
    drafts = DraftMetrics(registry, {"model_name": "m"})
    drafts.count([4, 2, 1], [3, 0, 1])
    drafts.count([2], [1])

    def value(name: str, **labels: str) -> float | None:
        sample = f"vllm:spec_decode_{name}_total"
        return registry.get_sample_value(sample, {"model_name": "m", **labels})

    assert value("num_drafts") == 4
    assert value("num_draft_tokens") == 9
    assert value("num_accepted_tokens") == 5
    at = [value("num_accepted_tokens_per_pos", position=str(i)) for i in range(4)]
    assert at == [3, 1, 1, None]


def test_a_scraper_that_prefers_another_format_still_gets_names_with_a_colon(site: Live) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    response = site.http.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "vllm:generation_tokens_total{" in response.text


def test_the_summary_in_json(site: Live) -> None:
    site.post("/v1/completions", prompt="x", max_tokens=50)
    load = site.http.get("/metrics", headers={"Accept": "application/json"}).json()
    assert set(load) == {"active_streams", "tokens_per_sec", "cpu_percent", "ram_percent"}
    assert load["active_streams"] == 0
    assert load["tokens_per_sec"] >= 5
    assert 0 < load["ram_percent"] <= 100


def test_buckets_end_at_the_longest_answer() -> None:
    assert one_two_five(1) == [1]
    assert one_two_five(49) == [1, 2, 5, 10, 20]
    assert one_two_five(8192)[-3:] == [1000, 2000, 5000]


def test_who_waits_for_a_twins_prefix_is_deferred_and_not_short_of_room() -> None:
    with live(runner={"step_seconds": 0.05}, max_chunk_tokens=16) as site:
        body: dict[str, Any] = {"prompt": [7] * 400, "max_tokens": 2}
        threads = [
            threading.Thread(target=site.post, args=("/v1/completions",), kwargs=body)
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        waiting = "vllm:num_requests_waiting_by_reason"
        assert eventually(lambda: site.metric(waiting, reason="deferred") == 1)
        assert site.metric(waiting, reason="capacity") == 0
        assert site.metric("vllm:num_requests_waiting") == 1
        assert site.metric("pellucid_active_streams") == 2
        assert site.metric("pellucid_event_loop_tasks") > 2  # theirs, and the server's own
        for thread in threads:
            thread.join()
        assert site.metric(waiting, reason="deferred") == 0


def test_http_requests_are_counted_by_route_and_never_by_path() -> None:
    with live() as site:
        site.post("/v1/completions", prompt="x", max_tokens=1)
        site.post("/v1/completions", prompt=7)
        for path in ("/a", "/b", "/v1/models/nobody"):
            site.http.get(path)
        seen = {
            (s.labels["handler"], s.labels["method"], s.labels["status"]): s.value
            for s in families(site)["http_requests"].samples
            if s.name == "http_requests_total"
        }
        assert seen == {
            ("/v1/completions", "POST", "2xx"): 1,
            ("/v1/completions", "POST", "4xx"): 1,
            ("none", "none", "4xx"): 2,
            ("/v1/models/{model_id:path}", "GET", "4xx"): 1,
        }
        assert site.metric("http_request_duration_seconds_count", handler="/v1/completions") == 2


def test_what_others_count_is_shown_and_known_reasons_begin_at_zero() -> None:
    with live() as site:
        counters = site.gateway.counts
        assert site.metric("pellucid_refused_requests_total", reason="api_key") == 0
        counters.refused["api_key"] += 2
        counters.cache["hit"] += 3
        counters.engine_restarts += 1
        assert site.metric("pellucid_refused_requests_total", reason="api_key") == 2
        assert site.metric("pellucid_answer_cache_requests_total", outcome="hit") == 3
        assert site.metric("pellucid_engine_restarts_total") == 1


def test_a_full_queue_is_counted() -> None:
    with live(runner={"step_seconds": 0.05}, max_num_seqs=1, max_waiting=1) as site:
        body: dict[str, Any] = {"prompt": [7], "max_tokens": 20}
        threads = [
            threading.Thread(target=site.post, args=("/v1/completions",), kwargs=body)
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert eventually(lambda: site.llm.num_unfinished == 2)
        assert site.post("/v1/completions", **body).status_code == 429
        assert site.metric("pellucid_refused_requests_total", reason="queue_full") == 1
        for thread in threads:
            thread.join()


def test_both_processes_are_shown() -> None:
    with live(client=ProcessClient(EngineConfig.of(runner="fake"))) as site:
        pid = site.llm.info.pid
        for process, number in {"frontend": os.getpid(), "engine": pid}.items():
            used = site.metric("pellucid_process_resident_memory_bytes", process=process)
            assert used == pytest.approx(psutil.Process(number).memory_info().rss, rel=0.3)
            assert site.metric("pellucid_process_cpu_seconds_total", process=process) > 0


def test_the_cache_config_tells_the_type_of_the_cache() -> None:
    with live(client=ScriptedClient(kv_dtype="float16")) as site:
        assert site.metric("vllm:cache_config_info", cache_dtype="float16") == 1
