"""How near each engine comes to the float32 reference: what benchmarks/fidelity.py asks, of all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fidelity import ANSWER, common_prefix, windows
from benchmarks.fidelity_prompts import PROMPTS
from benchmarks.peers.engines import ORACLE, Engine, Weights
from benchmarks.peers.process import EngineError, EngineProcess
from benchmarks.peers.report import Report, note_failure
from pellucid.config import ModelSettings
from pellucid.frontend.tokenizer import load_tokenizer
from pellucid.load.hub import resolve


def measure_fidelity(
    report: Report, engines: Mapping[str, Engine], weights: Weights, source: Path
) -> None:
    """One engine after the other; nothing here is timed."""
    tokenizer = load_tokenizer(resolve(ModelSettings(model=str(weights.source))))
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    texts = windows(tokenizer)
    oracle = _ask(ORACLE, prompts, texts, weights, source)
    for name, engine in engines.items():
        try:
            answer = _ask(engine, prompts, texts, weights, source)
        except EngineError as error:
            note_failure(report, name, "fidelity", str(error))
            continue
        entry = compare_answers(answer, oracle)
        report["fidelity"][name] = entry
        report["engines"].setdefault(name, {"label": engine.label})
        print(f"{name:22} {entry}", flush=True)


def _ask(
    engine: Engine, prompts: list[list[int]], texts: list[list[int]], weights: Weights, source: Path
) -> dict[str, Any]:
    print(f"asking {engine.name} ...", flush=True)
    with engine.start(source) as process:
        engine.load(process, weights)
        answers = process.call("generate", prompts=prompts, output_len=ANSWER)["tokens"]
        return {"tokens": answers, "logprobs": _score(process, texts) if engine.scores else None}


def _score(process: EngineProcess, texts: list[list[int]]) -> list[float]:
    answer = process.call("score", windows=texts)
    return [value for window in answer["logprobs"] for value in window]


def compare_answers(answer: Mapping[str, Any], oracle: Mapping[str, Any]) -> dict[str, Any]:
    """Equal answers, the mean common prefix, and how far log probabilities lie apart."""
    prefixes = [
        common_prefix(*pair) for pair in zip(answer["tokens"], oracle["tokens"], strict=True)
    ]
    entry = {
        "prompts": len(prefixes),
        "answer": ANSWER,
        "exact": prefixes.count(ANSWER),
        "mean_common_prefix": sum(prefixes) / len(prefixes),
    }
    if answer["logprobs"] is not None:
        scores = np.array(answer["logprobs"])
        entry["mean_logprob_distance"] = float(np.abs(scores - oracle["logprobs"]).mean())
        entry["perplexity"] = float(np.exp(-scores.mean()))
    return entry
