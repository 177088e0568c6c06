"""A model's Prometheus metrics under vLLM's names, labels and buckets: its dashboards work here.

What vLLM has no name for begins with `pellucid_`.

Fed by `AsyncLLM` once per step and once per finished answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pellucid.config import CacheSettings
from pellucid.frontend.adapters import MAX_ADAPTERS
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.messages import EngineInfo, StepStats
from pellucid.server.draft_metrics import DraftMetrics

# fmt: off
TTFT_BUCKETS = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
                80, 160, 640, 2560)
TOKEN_TIME_BUCKETS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20,
                      40, 80)
REQUEST_TIME_BUCKETS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480,
                        960, 1920, 7680)
STEP_TOKEN_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
ANSWER_BUCKETS = (1, 2, 5, 10, 20)
# fmt: on

FINISH_REASONS = ("stop", "length", "abort", "timeout", "error")
RATE_WINDOW = 10.0  # seconds over which tokens per second are averaged


class Metrics:
    """One loaded model's, a `StatsListener`; its registry comes and goes with the engine.

    `exposition.py` has what there is once in a server, and shows all of it together.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        info = llm.info
        self.registry = CollectorRegistry()
        self._labels = {"model_name": llm.model_name, "engine": "0"}
        self._num_kv_blocks = info.num_kv_blocks
        self._recent: deque[tuple[float, int]] = deque()  # (when, tokens generated)
        self._make_step_metrics()
        self._make_request_metrics(info.max_model_len)
        self._tell_cache_config(info, llm.config.cache)
        self._make_own_metrics(info)

    def on_step(self, report: StepReport) -> None:
        stats = report.stats
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._waiting_capacity.set(stats.num_waiting - stats.num_deferred)
        self._waiting_deferred.set(stats.num_deferred)
        self._kv_usage.set(stats.kv_blocks_used / self._num_kv_blocks)
        self._preemptions.inc(stats.num_preemptions)
        self._prefix_queries.inc(stats.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits)
        # As in vLLM a prompt's tokens count when they are there, computed or found.
        self._prompt_tokens.inc(stats.num_prompt_tokens + stats.prefix_hits)
        self._prompt_tokens_cached.inc(stats.prefix_hits)
        self._prompt_computed.inc(stats.num_prompt_tokens)
        self._prompt_found.inc(stats.prefix_hits)
        self._generation_tokens.inc(stats.num_generated_tokens)
        self._schedule_seconds.inc(stats.schedule_seconds)
        self._draft_seconds.inc(stats.draft_seconds)
        self._forward_seconds.inc(stats.forward_seconds)
        self._sample_seconds.inc(stats.sample_seconds)
        if stats.running_adapters or stats.waiting_adapters or self._shows_adapters:
            self._show_adapters(stats)
        if stats.drafted:
            self._drafts.count(stats.drafted, stats.accepted)
        if tokens := stats.num_prompt_tokens + stats.num_generated_tokens:
            self._step_tokens.observe(tokens)
        for seconds in report.times_to_first_token:
            self._ttft.observe(seconds)
        for seconds in report.inter_token_latencies:
            self._itl.observe(seconds)
        if stats.num_generated_tokens:
            self._recent.append((stats.time, stats.num_generated_tokens))
            self._forget(stats.time)

    def on_finish(self, report: RequestReport) -> None:
        self._finished[report.finish_reason].inc()
        self._request_prompt_tokens.observe(report.num_prompt_tokens)
        self._request_computed_tokens.observe(report.num_prompt_tokens - report.num_cached_tokens)
        self._request_generation_tokens.observe(report.num_output_tokens)
        self._request_max_generation_tokens.observe(report.num_output_tokens)
        if report.params.max_tokens is not None:
            self._request_max_tokens.observe(report.params.max_tokens)
        times = report.times
        _observe(self._e2e, times.arrival, times.finished)
        _observe(self._queue, times.arrival, times.scheduled)
        _observe(self._prefill, times.scheduled, times.first_token)
        _observe(self._inference, times.scheduled, times.finished)
        _observe(self._decode, times.first_token, times.finished)
        if report.num_output_tokens > 1:
            gaps = report.num_output_tokens - 1
            _observe(self._time_per_token, times.first_token, times.finished, gaps)

    def on_submit(self, num_answers: int) -> None:
        """A request for `num_answers` answers was taken."""
        self._request_n.observe(num_answers)

    def tokens_per_second(self) -> float:
        """Generated tokens of all requests, averaged over the last seconds."""
        self._forget(time.monotonic())
        return sum(tokens for _, tokens in self._recent) / RATE_WINDOW

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - RATE_WINDOW:
            self._recent.popleft()

    def _show_adapters(self, stats: StepStats) -> None:
        """As in vLLM the names are labels, and the value is the time."""
        self._adapters.clear()
        self._shows_adapters = bool(stats.running_adapters or stats.waiting_adapters)
        if self._shows_adapters:
            self._adapters.labels(
                **self._labels,
                max_lora=str(MAX_ADAPTERS),
                waiting_lora_adapters=",".join(stats.waiting_adapters),
                running_lora_adapters=",".join(stats.running_adapters),
            ).set_to_current_time()

    # ---- construction

    def _gauge(self, name: str, about: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", about, [*self._labels], registry=self.registry)
        return gauge.labels(**self._labels)

    def _counter(self, name: str, about: str) -> Counter:
        counter = Counter(f"vllm:{name}", about, [*self._labels], registry=self.registry)
        return counter.labels(**self._labels)

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", about, [*self._labels], registry=self.registry, buckets=buckets
        )
        return histogram.labels(**self._labels)

    def _make_step_metrics(self) -> None:
        self._running = self._gauge("num_requests_running", "Requests in the running set.")
        self._waiting = self._gauge("num_requests_waiting", "Requests in the queue.")
        by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason",
            "Requests in the queue: for room, or (deferred) for a prefix that is being computed.",
            [*self._labels, "reason"],
            registry=self.registry,
        )
        self._waiting_capacity = by_reason.labels(**self._labels, reason="capacity")
        self._waiting_deferred = by_reason.labels(**self._labels, reason="deferred")
        self._kv_usage = self._gauge(
            "kv_cache_usage_perc", "Share of the KV blocks that requests hold, 0 to 1."
        )
        self._preemptions = self._counter("num_preemptions", "Requests sent back to the queue.")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self._prompt_tokens_cached = self._counter(
            "prompt_tokens_cached", "Prompt tokens that were not computed again."
        )
        by_source = Counter(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens processed, computed or found.",
            [*self._labels, "source"],
            registry=self.registry,
        )
        self._prompt_computed = by_source.labels(**self._labels, source="local_compute")
        self._prompt_found = by_source.labels(**self._labels, source="local_cache_hit")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._shows_adapters = False
        self._adapters: Gauge = Gauge(
            "vllm:lora_requests_info",
            "LoRA adapters that requests have, while any has one.",
            [*self._labels, "max_lora", "waiting_lora_adapters", "running_lora_adapters"],
            registry=self.registry,
        )
        self._drafts = DraftMetrics(self.registry, self._labels)
        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Prompt and generated tokens of one step.", STEP_TOKEN_BUCKETS
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS
        )
        self._itl = self._histogram(
            "inter_token_latency_seconds", "From one token to the next.", TOKEN_TIME_BUCKETS
        )

    def _make_request_metrics(self, max_model_len: int) -> None:
        def tokens(name: str, about: str) -> Histogram:
            return self._histogram(name, about, one_two_five(max_model_len))

        def seconds(name: str, about: str) -> Histogram:
            return self._histogram(name, about, REQUEST_TIME_BUCKETS)

        self._request_prompt_tokens = tokens("request_prompt_tokens", "Tokens of a prompt.")
        self._request_computed_tokens = tokens(
            "request_prefill_kv_computed_tokens", "Tokens of a prompt that were not cached."
        )
        self._request_generation_tokens = tokens(
            "request_generation_tokens", "Tokens of an answer."
        )
        self._request_max_generation_tokens = tokens(
            "request_max_num_generation_tokens", "Most tokens of an answer, over all answers."
        )
        self._request_max_tokens = tokens("request_params_max_tokens", "A request's max_tokens.")
        self._request_n = self._histogram("request_params_n", "A request's n.", ANSWER_BUCKETS)
        self._e2e = seconds("e2e_request_latency_seconds", "From arrival to the end.")
        self._queue = seconds("request_queue_time_seconds", "From arrival to the first step.")
        self._inference = seconds("request_inference_time_seconds", "First step to the end.")
        self._prefill = seconds("request_prefill_time_seconds", "First step to first token.")
        self._decode = seconds("request_decode_time_seconds", "First token to the end.")
        self._time_per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "A request's mean time per token after the first.",
            TOKEN_TIME_BUCKETS,
        )
        finished = Counter(
            "vllm:request_success",
            "Answers that ended.",
            [*self._labels, "finished_reason"],
            registry=self.registry,
        )
        self._finished = {  # all of them at once: a rate needs the zero before the first
            reason: finished.labels(**self._labels, finished_reason=reason)
            for reason in FINISH_REASONS
        }

    def _make_own_metrics(self, info: EngineInfo) -> None:
        parts = Counter(
            "pellucid_step_seconds",
            "Where the engine's steps spent their time.",
            ["model_name", "part"],
            registry=self.registry,
        )
        name = self._labels["model_name"]
        self._schedule_seconds = parts.labels(name, "schedule")
        self._draft_seconds = parts.labels(name, "draft")
        self._forward_seconds = parts.labels(name, "forward")
        self._sample_seconds = parts.labels(name, "sample")
        Gauge(
            "pellucid_tensor_parallel_size",
            "Processes that share the model's weights.",
            ["model_name"],
            registry=self.registry,
        ).labels(name).set(info.tensor_parallel_size)

    def _tell_cache_config(self, info: EngineInfo, cache: CacheSettings) -> None:
        facts = {
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.num_kv_blocks),  # vLLM's name on every device
            "enable_prefix_caching": str(cache.prefix_caching),
            "cache_dtype": info.kv_dtype,
        }
        gauge = Gauge(
            "vllm:cache_config_info",
            "The KV cache's settings.",
            [*self._labels, *facts],
            registry=self.registry,
        )
        gauge.labels(**self._labels, **facts).set(1)


def one_two_five(limit: int) -> list[float]:
    """Buckets 1, 2, 5, 10, 20, 50, ... up to `limit`."""
    series = [m * 10.0**e for e in range(len(str(limit))) for m in (1, 2, 5)]
    return [bound for bound in series if bound <= limit]


def _observe(histogram: Histogram, begin: float | None, end: float | None, parts: int = 1) -> None:
    if begin is not None and end is not None:
        histogram.observe((end - begin) / parts)
