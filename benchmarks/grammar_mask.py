"""What a grammar costs per token: finding what is allowed, putting it onto logits, going on.

The tokens are those of texts that keep the grammar, in the default model's vocabulary; nothing is
generated. A step of the default model takes a few milliseconds.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch

from benchmarks.report import save
from pellucid.config import ModelSettings
from pellucid.frontend.tokenizer import Tokenizer, load_tokenizer
from pellucid.grammar import source
from pellucid.grammar.compiler import Grammar, GrammarCompiler, bitmask_words
from pellucid.load.hub import resolve
from pellucid.sample.bitmask import apply_bitmask

REPEATS = 20
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
VALUE = {
    "name": 'Ada "the first" Lovelace, née Byron',
    "age": 36,
    "email": "ada@example.org",
    "tags": ["red", "blue", "red"],
    "address": {"city": "London", "zip": "W1"},
}
TEXT = json.dumps(VALUE, ensure_ascii=False)
INDENTED = json.dumps(VALUE, ensure_ascii=False, indent=2)
CASES = {
    "schema": (source.from_json_schema(PERSON), TEXT),
    "schema_indented": (source.from_json_schema(PERSON), INDENTED),
    "json_object": (source.from_json_object(), TEXT),
    "regex": (source.from_regex(r"[A-Z][a-zA-Z ]+\. [0-9]{4}-[0-9]{2}"), "Written in May. 1843-08"),
    "prose": (source.from_regex(r"(.|\n)*"), "It read one word, and another word. " * 3),
}


def follow(
    grammar: Grammar, token_ids: list[int], masks: np.ndarray, logits: torch.Tensor
) -> dict[str, list[float]]:
    """Seconds per token of each part. Raises if a token is not allowed."""
    matcher = grammar.matcher()
    seconds: dict[str, list[float]] = {"mask": [], "apply": [], "accept": []}
    for token in token_ids:
        begin = time.perf_counter()
        matcher.fill(masks[0])
        filled = time.perf_counter()
        apply_bitmask(logits, [0], masks)
        applied = time.perf_counter()
        matcher.accept([token])
        seconds["mask"].append(filled - begin)
        seconds["apply"].append(applied - filled)
        seconds["accept"].append(time.perf_counter() - applied)
    return seconds


def measure(tokenizer: Tokenizer, compiler: GrammarCompiler, text: str, answer: str) -> Any:
    begin = time.perf_counter()
    grammar = compiler.compile(text)
    result: dict[str, float] = {"compile_milliseconds": 1e3 * (time.perf_counter() - begin)}
    ids = tokenizer.encode(answer, add_special_tokens=False)
    masks = np.zeros((1, bitmask_words(tokenizer.vocab_size)), np.uint32)
    parts: dict[str, list[float]] = {"mask": [], "apply": [], "accept": []}
    for _ in range(REPEATS):
        logits = torch.zeros(1, tokenizer.vocab_size)
        for name, seconds in follow(grammar, ids, masks, logits).items():
            parts[name] += seconds
    parts["all"] = [sum(each) for each in zip(*parts.values(), strict=True)]
    for name, seconds in parts.items():
        result[f"{name}_median"], result[f"{name}_p99"] = (
            1e6 * float(np.percentile(seconds, q)) for q in (50, 99)
        )
    return result | {"tokens": len(ids)}


def main() -> None:
    tokenizer = load_tokenizer(resolve(ModelSettings()))
    compiler = GrammarCompiler(
        [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)],
        sorted(tokenizer.special_ids),
        tokenizer.eos_token_ids,
        tokenizer.vocab_size,
    )
    results = {}
    for name, (text, answer) in CASES.items():
        results[name] = found = measure(tokenizer, compiler, text, answer)
        print(
            f"{name:16} compiled in {found['compile_milliseconds']:5.1f} ms; per token "
            f"{found['all_median']:4.0f} us (p99 {found['all_p99']:4.0f}), of which mask "
            f"{found['mask_median']:3.0f} (p99 {found['mask_p99']:4.0f})"
        )
    save("grammar_mask", results, unit="microseconds", vocab_size=tokenizer.vocab_size)
