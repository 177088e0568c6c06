"""The servers over HTTP, loaded by `vllm bench serve`, which is not ours and runs beside them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.peers.engines import PELLUCID, THREADS, Weights, environment
from benchmarks.peers.environments import LOGS, PEERS
from benchmarks.peers.process import EngineError
from benchmarks.peers.report import Report, merge, note_failure
from benchmarks.peers.rounds import Turn, alternate, spread
from pellucid.config import SchedulerSettings

LOAD_GENERATOR = "vllm"  # the environment that it comes from
READY_SECONDS = 300.0
MODEL = "model"  # the name that every server gives it
SLOTS = 32
SLOT_TOKENS = 512
LOOKUP = SchedulerSettings()  # who guesses by ngram does so of as many tokens as pellucid
# Workload name -> (clients at once, requests)
WARMUP = (8, 8)
WORKLOADS = {"http_1": (1, 8), "http_8": (8, 32), "http_32": (32, 96)}


@dataclass(frozen=True)
class Server:
    """`command` gets the weights' path and a port."""

    label: str
    peer: str | None
    weights: str
    command: Callable[[str, int], list[str | Path]]


def _pellucid(model: str, port: int) -> list[str | Path]:
    options = (
        f"--port {port} --max-num-seqs {SLOTS} --threads {THREADS} --no-prefix-caching "
        f"--served-model-name {MODEL}"
    )
    return [sys.executable, "-m", "pellucid", "serve", model, *options.split()]


def _pellucid_plain(model: str, port: int) -> list[str | Path]:
    return [*_pellucid(model, port), "--speculative", "none"]


def _llama_server(model: str, port: int) -> list[str | Path]:
    options = (
        f"--port {port} --parallel {SLOTS} --ctx-size {SLOTS * SLOT_TOKENS} --threads {THREADS} "
        "--no-kv-unified --no-cache-prompt --offline --no-slots "
        f"--alias {MODEL}"
    )
    binary = PEERS["llama.cpp"].folder / "build" / "bin" / "llama-server"
    return [binary, "--model", model, *options.split()]


def _llama_server_ngram(model: str, port: int) -> list[str | Path]:
    options = (
        f"--spec-type ngram-simple --spec-ngram-simple-size-n {LOOKUP.prompt_lookup_max} "
        f"--spec-ngram-simple-size-m {LOOKUP.num_speculative_tokens}"
    )
    return [*_llama_server(model, port), *options.split()]


def _vllm(model: str, port: int) -> list[str | Path]:
    options = (
        f"--port {port} --dtype bfloat16 --max-model-len 2048 --max-num-seqs {SLOTS} "
        "--no-enable-prefix-caching --host 127.0.0.1 "
        f"--served-model-name {MODEL}"
    )
    return [_vllm_command(), "serve", model, *options.split()]


def _vllm_ngram(model: str, port: int) -> list[str | Path]:
    lookup = {
        "method": "ngram",
        "num_speculative_tokens": LOOKUP.num_speculative_tokens,
        "prompt_lookup_min": LOOKUP.prompt_lookup_min,
        "prompt_lookup_max": LOOKUP.prompt_lookup_max,
    }
    return [*_vllm(model, port), "--speculative-config", json.dumps(lookup)]


def _vllm_command() -> Path:
    return PEERS["vllm"].folder / "env" / "bin" / "vllm"


SERVERS = {
    PELLUCID: Server("pellucid", None, "gguf", _pellucid),
    "pellucid-plain": Server("pellucid, nothing guessed", None, "gguf", _pellucid_plain),
    "llama.cpp-q4_1": Server("llama.cpp, Q4_1", "llama.cpp", "gguf", _llama_server),
    "llama.cpp-q4_0": Server("llama.cpp, Q4_0", "llama.cpp", "q4_0", _llama_server),
    "llama.cpp-q4_0-ngram": Server(
        "llama.cpp, Q4_0, guesses by ngram", "llama.cpp", "q4_0", _llama_server_ngram
    ),
    "vllm": Server("vLLM, bfloat16", "vllm", "checkpoint", _vllm),
    "vllm-ngram": Server("vLLM, bfloat16, guesses by ngram", "vllm", "checkpoint", _vllm_ngram),
}


class Running:
    """A server's process, from its start until it is closed."""

    def __init__(self, name: str, server: Server, weights: Weights, source: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        LOGS.mkdir(parents=True, exist_ok=True)
        environ = {"PYTHONPATH": str(source)} if server.peer is None else environment(server.peer)
        command = server.command(weights.path(server.weights), self.port)
        # Without the folders: where they lie here is nobody's concern.
        self.command = " ".join(Path(part).name for part in command)
        begin = time.perf_counter()
        with (LOGS / f"serve-{name}.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **environ}
            )
        try:
            self._wait_until_ready(begin + READY_SECONDS)
        except BaseException:
            self.close()
            raise
        self.seconds_to_ready = time.perf_counter() - begin

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait_until_ready(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise EngineError(f"ended with {self.process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise EngineError(f"not ready after {READY_SECONDS:.0f} s")

    def family(self) -> list[psutil.Process]:
        """The server's process and those that it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def close(self) -> None:
        """End the server and the processes that it started."""
        if self.process.poll() is not None:
            return
        family = self.family()[1:]
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in family:
            if child.is_running():
                child.kill()


@contextmanager
def alone(running: Mapping[str, Running], name: str) -> Iterator[Running]:
    """Hold all other servers, so that what they do while they wait costs nobody anything."""
    held = [
        process
        for other, server in running.items()
        if other != name and server.process.poll() is None
        for process in server.family()
    ]
    for process in held:
        process.suspend()
    try:
        yield running[name]
    finally:
        for process in held:
            process.resume()


def measure_http(
    report: Report,
    servers: Mapping[str, Server],
    workloads: Sequence[str],
    weights: Weights,
    source: Path,
    rounds: int,
) -> None:
    """Start all servers, load them in turn, and add the figures to the report."""
    if LOAD_GENERATOR in report["unavailable"]:
        print("no load generator: HTTP is left out")
        return
    tokenizer = weights.path("checkpoint")
    with ExitStack() as stack:
        running = _start(report, servers, weights, source, stack)

        def turn(name: str, clients: int, requests: int, seed: int) -> Turn:
            with alone(running, name) as server:
                return bench(server, tokenizer, clients, requests, seed)

        alternate(running, [0], lambda name, _: turn(name, *WARMUP, seed=0))
        for workload in workloads:
            clients, requests = WORKLOADS[workload]

            def load(
                name: str, number: int, clients: int = clients, requests: int = requests
            ) -> Turn:
                return turn(name, clients, requests, number)

            def show(name: str, turn: Turn, workload: str = workload) -> None:
                print(
                    f"{workload:8} {name:16} {turn['output']:7,.0f} tok/s, "
                    f"TTFT {turn['ttft_ms']:6,.0f} ms, {turn['failed']:.0f} failed",
                    flush=True,
                )

            turns, failed = alternate(running, range(1, rounds + 1), load, show)
            for name, reason in failed.items():
                note_failure(report, name, workload, reason)
            merge(report, "over_http", str(clients), compare_http(turns, requests))


def _start(
    report: Report,
    servers: Mapping[str, Server],
    weights: Weights,
    source: Path,
    stack: ExitStack,
) -> dict[str, Running]:
    """All servers that start; `stack` will close them."""
    running: dict[str, Running] = {}
    for name, server in servers.items():
        print(f"starting {name} ...", flush=True)
        try:
            process = running[name] = Running(name, server, weights, source)
        except EngineError as error:
            note_failure(report, name, "serve", str(error))
            continue
        stack.callback(process.close)
        about = report["engines"].setdefault(name, {"label": server.label})
        about["serve"] = process.command
        about["serve_seconds_to_ready"] = process.seconds_to_ready
    return running


def bench(
    server: Running, tokenizer: str, clients: int, requests: int, seed: int
) -> dict[str, float]:
    """One run of `vllm bench serve`: random prompts of 128 tokens, answers of 128."""
    result = LOGS / f"bench-{server.port}.json"
    result.unlink(missing_ok=True)
    options = (
        "--backend openai --endpoint /v1/completions --dataset-name random --random-input-len 128 "
        "--random-output-len 128 --ignore-eos --temperature 0 --num-warmups 2 --disable-tqdm "
        f"--ready-check-timeout-sec 0 --max-concurrency {clients} --num-prompts {requests} "
        f"--seed {seed} --model {MODEL} --save-result --result-filename {result.name}"
    )
    command: list[str | Path] = [
        _vllm_command(),
        "bench",
        "serve",
        "--base-url",
        server.url,
        *options.split(),
    ]
    command += ["--tokenizer", tokenizer, "--result-dir", str(LOGS)]
    done = subprocess.run(
        command, env={**os.environ, **environment("vllm")}, capture_output=True, text=True
    )
    if not result.is_file():
        raise EngineError(f"vllm bench serve: {done.stderr.strip().splitlines()[-1:]}")
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return {
        "output": figures["output_throughput"],
        "ttft_ms": figures["mean_ttft_ms"],
        "tpot_ms": figures["mean_tpot_ms"],
        "failed": requests - figures["completed"],
    }


def compare_http(turns: Mapping[str, Sequence[Turn]], requests: int) -> dict[str, dict[str, Any]]:
    """Per server: speed, first token, failures, and how many times as fast pellucid was."""
    report: dict[str, dict[str, Any]] = {}
    for name, each in turns.items():
        speeds = [turn["output"] for turn in each]
        report[name] = {
            "rounds": len(each),
            "tokens_per_s": spread(speeds),
            "mean_ttft_ms": spread([turn["ttft_ms"] for turn in each]),
            "mean_tpot_ms": spread([turn["tpot_ms"] for turn in each]),
            "failed": int(sum(turn["failed"] for turn in each)),
            "requests": requests * len(each),
        }
        if name != PELLUCID and PELLUCID in turns:
            ours = [turn["output"] for turn in turns[PELLUCID]]
            pairs = zip(ours, speeds, strict=True)
            report[name]["pellucid_tokens_per_s"] = spread(ours)
            report[name]["pellucid_times_as_fast"] = spread([a / b for a, b in pairs])
            report[name]["pellucid_mean_ttft_ms"] = median(
                turn["ttft_ms"] for turn in turns[PELLUCID]
            )
    return report
