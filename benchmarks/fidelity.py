"""How near the native kernels come to the float32 reference, on the same file.

Two measures: greedy continuations of 160 prompts, compared token by token (once one differs the
rest means little, so what counts is the common prefix), and the log probabilities of a text of
twenty thousand tokens: this repository's own documentation and docstrings.
"""

from __future__ import annotations

import ast
import gc
import hashlib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fidelity_prompts import PROMPTS
from benchmarks.report import save
from pellucid import LLM, SamplingParams
from pellucid.frontend.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
ANSWER = 48  # tokens
TEXT = 20_000  # tokens
WINDOW = 500  # tokens that are scored together
SETTINGS: dict[str, dict[str, str]] = {
    "reference float32": {"kernels": "reference", "dtype": "float32"},
    "reference bfloat16": {"kernels": "reference", "dtype": "bfloat16"},
    "native, float32 KV": {"kernels": "native", "kv_cache_dtype": "float32"},
    "native, bfloat16 KV": {"kernels": "native", "kv_cache_dtype": "bfloat16"},
    "native, float16 KV": {"kernels": "native", "kv_cache_dtype": "float16"},
    "native, int8 KV": {"kernels": "native", "kv_cache_dtype": "int8"},
}
ORACLE = "reference float32"


def prose() -> Iterator[str]:
    """The repository's documents, then the docstrings of its modules, by name."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        yield path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "src" / "pellucid").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def windows(tokenizer: Tokenizer) -> list[list[int]]:
    tokens = tokenizer.encode("\n\n".join(filter(None, prose())), add_special_tokens=False)
    if len(tokens) < TEXT:
        raise SystemExit(f"the repository's prose is {len(tokens)} tokens long, not {TEXT}")
    return [tokens[start : start + WINDOW] for start in range(0, TEXT, WINDOW)]


def continuations(llm: LLM) -> list[list[int]]:
    params = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(list(PROMPTS), params, use_progress_bar=False)
    return [output.outputs[0].token_ids for output in outputs]


def score(llm: LLM) -> NDArray[np.float64]:
    """The log probability of every token of the text but the first of each window."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = llm.generate(windows(llm.tokenizer), params, use_progress_bar=False)
    entries = [entry for output in outputs for entry in output.prompt_logprobs or [] if entry]
    return np.array([entry.logprob for entry in entries])


def common_prefix(a: list[int], b: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True)))


def main() -> None:
    answers: dict[str, list[list[int]]] = {}
    scores: dict[str, NDArray[np.float64]] = {}
    results: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        llm = LLM(**settings, device="cpu", max_num_seqs=len(PROMPTS), prefix_caching=False)
        answers[name], scores[name] = continuations(llm), score(llm)
        llm.close()
        gc.collect()
        prefixes = [
            common_prefix(*pair) for pair in zip(answers[name], answers[ORACLE], strict=True)
        ]
        results[name] = {
            "exact": prefixes.count(ANSWER),
            "mean_common_prefix": sum(prefixes) / len(prefixes),
            "perplexity": float(np.exp(-scores[name].mean())),
            "mean_logprob_distance": float(np.abs(scores[name] - scores[ORACLE]).mean()),
        }
        print(
            f"{name:20} {results[name]['exact']:2} answers equal, common prefix"
            f" {results[name]['mean_common_prefix']:4.1f}, perplexity"
            f" {results[name]['perplexity']:.3f}, log probabilities"
            f" {results[name]['mean_logprob_distance']:.4f} off"
        )
    digest = hashlib.sha256("\n\n".join(filter(None, prose())).encode()).hexdigest()
    save("fidelity", results, prompts=len(PROMPTS), answer=ANSWER, text=TEXT, text_sha256=digest)
