"""How near the native kernels come to the float32 reference, on the same file.

Three measures: greedy continuations of forty prompts, compared token by token (once one differs the
rest means little, so what counts is the common prefix), the perplexity of a text of twenty thousand
tokens: this repository's own documentation and docstrings, and how far the log probabilities of
these tokens are from the reference's on average. The last is the sharpest: which of forty answers
stay equal is largely chance, as any small difference may tip a close decision early on.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import math
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.fidelity_prompts import PROMPTS
from benchmarks.report import save
from pellucid import LLM, SamplingParams

ROOT = Path(__file__).parents[1]
ANSWER = 48  # tokens
TEXT = 20_000  # tokens
WINDOW = 500  # tokens that are scored together
SETTINGS: dict[str, dict[str, str]] = {
    "reference float32": {"kernels": "reference", "dtype": "float32"},
    "reference bfloat16": {"kernels": "reference", "dtype": "bfloat16"},
    "native, float32 KV": {"kernels": "native", "kv_cache_dtype": "float32"},
    "native, float16 KV": {"kernels": "native", "kv_cache_dtype": "float16"},
    "native, bfloat16 KV": {"kernels": "native", "kv_cache_dtype": "bfloat16"},
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


def windows(llm: LLM) -> list[list[int]]:
    tokens = llm.tokenizer.encode("\n\n".join(filter(None, prose())), add_special_tokens=False)
    if len(tokens) < TEXT:
        raise SystemExit(f"the repository's prose is {len(tokens)} tokens long, not {TEXT}")
    return [tokens[start : start + WINDOW] for start in range(0, TEXT, WINDOW)]


def continuations(llm: LLM) -> list[list[int]]:
    params = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(list(PROMPTS), params, use_progress_bar=False)
    return [output.outputs[0].token_ids for output in outputs]


def log_probabilities(llm: LLM) -> list[float]:
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = llm.generate(windows(llm), params, use_progress_bar=False)
    entries = [entry for output in outputs for entry in output.prompt_logprobs or [] if entry]
    return [entry.logprob for entry in entries]


def common_prefix(a: list[int], b: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True)))


def main() -> None:
    answers: dict[str, list[list[int]]] = {}
    scores: dict[str, list[float]] = {}
    results: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        llm = LLM(**settings, device="cpu", max_num_seqs=len(PROMPTS), prefix_caching=False)
        answers[name], scores[name] = continuations(llm), log_probabilities(llm)
        prefixes = [
            common_prefix(*pair) for pair in zip(answers[name], answers[ORACLE], strict=True)
        ]
        errors = [abs(a - b) for a, b in zip(scores[name], scores[ORACLE], strict=True)]
        results[name] = {
            "exact": prefixes.count(ANSWER),
            "mean_common_prefix": sum(prefixes) / len(prefixes),
            "perplexity": math.exp(-sum(scores[name]) / len(scores[name])),
            "mean_logprob_error": sum(errors) / len(errors),
        }
        print(
            f"{name:20} {results[name]['exact']:2} of {len(PROMPTS)} answers equal, common prefix"
            f" {results[name]['mean_common_prefix']:4.1f} of {ANSWER} tokens,"
            f" perplexity {results[name]['perplexity']:.4f},"
            f" mean error of log probabilities {results[name]['mean_logprob_error']:.5f}"
        )
        llm.close()
        gc.collect()
    digest = hashlib.sha256("\n\n".join(filter(None, prose())).encode()).hexdigest()
    save("fidelity", results, prompts=len(PROMPTS), answer=ANSWER, text=TEXT, text_sha256=digest)
