"""What the clients of a soak ask for: a mix of everything, some of it wrong on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = ["river", "stone", "amber", "quiet", "engine", "window", "harbour", "seven", "maple"]
JSON = {"Content-Type": "application/json"}

# What a request is sent for: an answer, a refusal, an end by its own deadline, or to hang up on.
Aim = Literal["answer", "refusal", "timeout", "leave"]


@dataclass(frozen=True)
class Ask:
    """One request to come."""

    kind: str
    path: str
    content: bytes
    aim: Aim = "answer"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    streams: bool = False


def prose(chance: random.Random, num_words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(num_words))


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}

Fields = Callable[[random.Random], dict[str, Any]]
GOOD: dict[str, tuple[int, str, Fields]] = {  # by kind: weight, route, fields
    "chat": (6, CHAT, lambda c: user(prose(c, 12)) | {"max_tokens": c.randint(1, 48)}),
    "completion": (4, TEXT, lambda c: {"prompt": prose(c, 9), "max_tokens": c.randint(1, 48)}),
    "long prompt": (1, TEXT, lambda c: {"prompt": prose(c, 500), "max_tokens": 8}),
    "shared prefix": (
        1,
        CHAT,
        lambda c: user(prose(random.Random(1), 200) + str(c.random())) | {"max_tokens": 12},
    ),
    "long answer": (
        1,
        TEXT,
        lambda c: {"prompt": prose(c, 5), "max_tokens": 300, "ignore_eos": True},
    ),
    "cached": (
        2,
        TEXT,
        lambda c: {"prompt": f"Count to {c.randint(1, 5)}:", "max_tokens": 12, "temperature": 0},
    ),
    "several": (
        1,
        TEXT,
        lambda c: {"prompt": [prose(c, 4), prose(c, 6)], "n": 2, "max_tokens": 10},
    ),
    "tools": (
        1,
        CHAT,
        lambda c: (
            user(prose(c, 6)) | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60}
        ),
    ),
    "structured": (
        1,
        CHAT,
        lambda c: (
            user(prose(c, 6))
            | {"structured_outputs": {"json": SCHEMA}, "max_tokens": 60, "seed": c.randint(0, 9)}
        ),
    ),
    "logprobs": (
        1,
        CHAT,
        lambda c: user(prose(c, 6)) | {"logprobs": True, "top_logprobs": 5, "max_tokens": 10},
    ),
    "penalties": (
        1,
        TEXT,
        lambda c: (
            {"prompt": prose(c, 20), "max_tokens": 24, "repetition_penalty": 1.3}
            | {"presence_penalty": 0.5, "top_k": 40, "top_p": 0.9, "stop": ["river"]}
        ),
    ),
}

BAD_BODIES = [  # for chats
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
    b'{"messages": ' + b"[" * 5000,
    *(
        json.dumps(user("Hi") | fields).encode()
        for fields in (
            {"temperature": -1},
            {"temprature": 1},
            {"max_tokens": 10**30},
            {"top_k": 1 << 70},
            {"logit_bias": {"999999": 1}},
            {"messages": []},
            {"messages": [{"role": "user", "content": 3}]},
            {"tool_choice": "required"},
            {"tools": []},
            {"model": "another"},
            {"structured_outputs": {"regex": "(("}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"$ref": "#/x"}},
                }
            },
            {"max_tokens": 100_000},
            {"messages": [{"role": "user", "content": "long " * 20_000}]},
            {"n": 2, "temperature": 0},
            {"repetition_penalty": 1e39},
        )
    ),
]
BAD_REQUESTS = [
    Ask("bad route", "/v1/nothing", b"{}", "refusal"),
    Ask("bad method", CHAT, b"", "refusal", method="GET"),
    Ask("bad type", TEXT, b"prompt=Hi", "refusal", headers={"Content-Type": "text/plain"}),
    Ask("bad size", TEXT, b" " * (9 << 20), "refusal"),
    Ask("bad id", TEXT, b"{}", "refusal", headers={**JSON, "X-Request-Id": "a b"}),
]


def next_ask(chance: random.Random) -> Ask:
    """A request of a kind drawn by its weight."""
    drawn = chance.random()
    if drawn < 0.15:
        return bad(chance)
    ask = good(chance, streams=chance.random() < 0.55)
    fields = json.loads(ask.content)
    if drawn < 0.27:
        fields |= {"max_tokens": 400, "ignore_eos": True}
        for name in ("tools", "tool_choice", "structured_outputs", "n"):
            fields.pop(name, None)
        return Ask("hang up", ask.path, json.dumps(fields).encode(), "leave", streams=ask.streams)
    if drawn < 0.30:
        fields |= {"timeout": 0.02, "max_tokens": 200, "cache": False}
        content = json.dumps(fields).encode()
        return Ask("deadline", ask.path, content, "timeout", streams=ask.streams)
    return ask


def good(chance: random.Random, *, streams: bool) -> Ask:
    """A request that deserves an answer."""
    kinds = list(GOOD)
    (kind,) = chance.choices(kinds, [GOOD[name][0] for name in kinds])
    _, path, fields = GOOD[kind]
    body = fields(chance) | ({"stream": True} if streams else {})
    return Ask(kind, path, json.dumps(body).encode(), streams=streams)


def bad(chance: random.Random) -> Ask:
    """A request that has to be refused."""
    if chance.random() < 0.2:
        return chance.choice(BAD_REQUESTS)
    return Ask("bad body", CHAT, chance.choice(BAD_BODIES), "refusal")
