"""The engines beside each other: which driver, which weights, and its best sensible settings."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.environments import PEERS, ROOT
from benchmarks.peers.process import EngineProcess
from pellucid.bench.machine import usable_cores
from pellucid.config import ModelSettings
from pellucid.load.hub import resolve

THREADS = max(1, int(usable_cores()))  # for every engine
SOURCE = Path(__file__).parents[2] / "src"
PELLUCID = "pellucid"


@dataclass(frozen=True)
class Engine:
    """`peer` names the environment (None: this interpreter); `weights` a method of `Weights`."""

    name: str
    label: str
    peer: str | None
    driver: str
    weights: str
    settings: dict[str, Any] = field(default_factory=dict)
    scores: bool = True  # its driver has `score`

    def python(self) -> Path:
        return Path(sys.executable) if self.peer is None else PEERS[self.peer].python

    def environ(self, source: Path) -> dict[str, str]:
        return {"PYTHONPATH": str(source)} if self.peer is None else environment(self.peer)

    def start(self, source: Path = SOURCE) -> EngineProcess:
        return EngineProcess(self.name, self.python(), self.driver, self.environ(source))

    def load(self, process: EngineProcess, weights: Weights) -> dict[str, Any]:
        """Load the model; returns version and settings as the engine gives them."""
        begin = time.perf_counter()
        answer = process.call("load", model=weights.path(self.weights), **self.settings)
        seconds = time.perf_counter() - begin
        return {"label": self.label, **answer["about"], "load_seconds": seconds}


def environment(peer: str) -> dict[str, str]:
    """Variables that the peer's own documents recommend, for library and server alike."""
    common = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    if peer != "vllm":
        return common
    return {
        **common,
        "LD_PRELOAD": str(PEERS["vllm"].folder / "env" / "lib" / "libiomp5.so"),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:THREADS])),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def _pellucid(name: str, label: str, **settings: Any) -> Engine:
    return Engine(
        name,
        label,
        None,
        "run_pellucid.py",
        "gguf",
        {"max_num_seqs": 32, "threads": THREADS, **settings},
    )


def _llama_cpp(name: str, label: str, weights: str) -> Engine:
    # Tried: without flash attention, or with one KV buffer for all sequences, it is slower.
    settings = {"threads": THREADS, "flash_attn": "on", "kv_unified": False}
    return Engine(name, label, "llama.cpp", "run_llama_cpp.py", weights, settings)


def _transformers(dtype: str) -> Engine:
    return Engine(
        f"transformers-{dtype}",
        f"transformers {dtype}",
        "transformers",
        "run_transformers.py",
        "checkpoint",
        {"dtype": dtype, "threads": THREADS},
    )


ENGINES = {
    engine.name: engine
    for engine in (
        _pellucid(PELLUCID, "pellucid"),
        _llama_cpp("llama.cpp-q4_1", "llama.cpp, Q4_1", "gguf"),
        _llama_cpp("llama.cpp-q4_0", "llama.cpp, Q4_0", "q4_0"),
        Engine(
            "openvino",
            "OpenVINO GenAI, Q4_1",
            "openvino",
            "run_openvino.py",
            "gguf",
            {"max_num_seqs": 32, "max_num_batched_tokens": 256, "cache_gb": 2, "threads": THREADS},
            scores=False,
        ),
        Engine(
            "vllm",
            "vLLM, bfloat16",
            "vllm",
            "run_vllm.py",
            "checkpoint",
            {
                "dtype": "bfloat16",
                "max_model_len": 2048,
                "max_num_seqs": 32,
                "enable_prefix_caching": False,
            },
        ),
        _transformers("bfloat16"),
        _transformers("float32"),
    )
}
# On the second model: the same file for both.
LARGER_ENGINES = {
    engine.name: engine
    for engine in (
        _pellucid(PELLUCID, "pellucid"),
        _llama_cpp("llama.cpp", "llama.cpp, the larger model's file", "gguf"),
    )
}
ORACLE = _pellucid("reference", "pellucid reference, float32", kernels="reference", dtype="float32")


@dataclass(frozen=True)
class Weights:
    """One GGUF file, and what the peers need made from it (once, in the cache)."""

    source: Path

    MADE_BY: ClassVar = {"q4_0": "llama.cpp", "checkpoint": "transformers"}  # whose environment

    @classmethod
    def of(cls, model: str) -> Weights:
        """`model` as pellucid names models; a .gguf file or an alias of one. Raises ModelError."""
        return cls(resolve(ModelSettings(model=model)).path)

    def path(self, kind: str) -> str:
        path: Path = getattr(self, kind)()
        return str(path)

    def gguf(self) -> Path:
        return self.source

    def q4_0(self) -> Path:
        return self._made(".Q4_0.gguf", "llama.cpp-q4_0", "requantise", ftype="Q4_0")

    def checkpoint(self) -> Path:
        """The dequantised weights in float32, as a Hugging Face folder; who wants less rounds."""
        return self._made(".float32", "transformers-float32", "write_checkpoint")

    def _made(self, suffix: str, engine: str, op: str, **arguments: str) -> Path:
        target = ROOT / "models" / (self.source.stem + suffix)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name("unfinished-" + target.name)
            with ENGINES[engine].start() as process:
                process.call(op, source=str(self.source), target=str(unfinished), **arguments)
            unfinished.rename(target)
        return target
