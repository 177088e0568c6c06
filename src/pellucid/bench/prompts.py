"""Prompts of a served benchmark: random token ids, random words, or a file of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from pellucid.errors import ConfigError

Endpoint = Literal["completions", "chat"]

# Most tokenizers give each of these one token, so that n words are about n tokens.
WORDS = (
    *("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by"),
    *("on", "not", "he", "this", "are", "or", "his", "from", "at", "which", "but", "have", "an"),
    *("had", "they", "you", "were", "their", "one", "all", "we", "can", "her", "has", "there"),
    *("been", "if", "more", "when", "will", "would", "who", "so", "no", "out", "up", "into"),
    *("than", "them", "only", "some", "time", "could", "these", "two", "may", "then", "do"),
    *("first", "any", "my", "now", "such", "like", "our", "over", "man", "me", "even", "most"),
    *("made", "after", "also", "did", "many", "before", "must", "through", "years", "where"),
)

SPECIAL_IDS = 300  # vocabularies keep control and byte tokens below about this id


class Prompt(msgspec.Struct, omit_defaults=True):
    """One line of a dataset: `prompt` (text or token ids) or `messages`, and its answer's limit."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None


def random_token_prompts(
    count: int, length: int, vocab_size: int, shared_prefix: int, seed: int
) -> list[Prompt]:
    """Prompts of exactly `length` random ids, the first `shared_prefix` of them common to all."""
    rng = np.random.default_rng(seed)
    low = min(SPECIAL_IDS, vocab_size // 2)
    shared = rng.integers(low, vocab_size, shared_prefix).tolist()
    return [
        Prompt(prompt=shared + rng.integers(low, vocab_size, length - shared_prefix).tolist())
        for _ in range(count)
    ]


def random_word_prompts(count: int, length: int, shared_prefix: int, seed: int) -> list[Prompt]:
    """Prompts of `length` random words, about as many tokens; usage tells the exact number."""
    rng = np.random.default_rng(seed)
    shared = rng.choice(WORDS, shared_prefix).tolist()
    return [
        Prompt(prompt=" ".join(shared + rng.choice(WORDS, length - shared_prefix).tolist()))
        for _ in range(count)
    ]


def read_dataset(path: Path, count: int) -> list[Prompt]:
    """`count` prompts from a JSONL file, starting over when it has fewer lines.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line is no prompt; names the line.
    """
    decoder = msgspec.json.Decoder(Prompt)
    prompts = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--dataset: cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"--dataset: {path} line {number}: {error}") from None
        if (prompt.prompt is None) == (prompt.messages is None):
            raise ConfigError(
                f"--dataset: {path} line {number}: needs either `prompt` or `messages`"
            )
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"--dataset: {path} holds no prompts")
    return [prompts[i % len(prompts)] for i in range(count)]


def request_body(prompt: Prompt, endpoint: Endpoint, common: dict[str, Any]) -> bytes:
    """The request as JSON. Raises ConfigError for a prompt that the endpoint cannot take."""
    body = dict(common)
    if prompt.max_tokens is not None:
        body["max_tokens"] = prompt.max_tokens
    if endpoint == "chat":
        if isinstance(prompt.prompt, list):
            raise ConfigError("--endpoint chat takes text, not token ids")
        body["messages"] = prompt.messages or [{"role": "user", "content": prompt.prompt}]
    elif prompt.prompt is None:
        raise ConfigError("--endpoint completions takes `prompt`, not `messages`")
    else:
        body["prompt"] = prompt.prompt
    return msgspec.json.encode(body)
