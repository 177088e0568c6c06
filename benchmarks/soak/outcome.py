"""How requests ended, and which ends are a failure of the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.soak.traffic import Ask

HANG_SECONDS = 150  # beyond the server's own --request-timeout: nobody will answer any more
PATIENCE_SECONDS = 0.3  # of those who hang up while a whole answer is computed
ENDS = ("answered", "refused", "busy", "error", "left", "FAILED")
KEPT_FAILURES = 50


@dataclass(frozen=True)
class End:
    """One request's.

    Attributes:
        how: `answered`; `refused`, a 4xx that was to be; `busy`, a 429 that says when to come back;
            `error`, which the client is told; `left`, by the client; or `FAILED`.
        why: the status, or the type of an error in a stream; of a failure what is wrong.
    """

    how: str
    why: str = ""


async def send(client: httpx.AsyncClient, ask: Ask) -> End:
    """Send a request and see how it ends."""
    leaves_early = ask.aim == "leave" and not ask.streams
    try:
        async with asyncio.timeout(PATIENCE_SECONDS if leaves_early else HANG_SECONDS):
            async with client.stream(
                ask.method, ask.path, content=ask.content, headers=ask.headers
            ) as response:
                if ask.aim == "leave" and ask.streams and response.status_code == 200:
                    return await _leave(response)
                text = (await response.aread()).decode()
                return judge(ask, response.status_code, response.headers, text)
    except TimeoutError:
        return End("left") if leaves_early else End("FAILED", "a hang")
    except httpx.HTTPError as error:
        # A body beyond the limit may be cut off before its sender reads the refusal.
        if ask.kind == "bad size":
            return End("refused", "cut off")
        return End("FAILED", f"cut off: {type(error).__name__}")


async def _leave(response: httpx.Response) -> End:
    """Hang up after a few pieces of a stream."""
    num_pieces = 0
    async for _ in response.aiter_raw():
        num_pieces += 1
        if num_pieces == 3:
            break
    return End("left")


def judge(ask: Ask, status: int, headers: Any, text: str) -> End:
    """What a complete answer amounts to."""
    if status == 200:
        return _judge_answer(ask, text)
    if _error_of(text) is None:
        return End("FAILED", f"{status} without an error in its body")
    if status == 429:  # which may be found out before what is wrong with a request
        return _if_tells_when(headers, "busy", "429")
    if status == 503:  # an engine that was killed
        return _if_tells_when(headers, "error", "503")
    if ask.aim == "refusal" and 400 <= status < 500:
        return End("refused", str(status))
    if status == 504:
        return End("error", "504")
    return End("FAILED", f"{status}: {text[:200]}")


def _if_tells_when(headers: Any, how: str, why: str) -> End:
    if int(headers.get("retry-after") or 0) >= 1:
        return End(how, why)
    return End("FAILED", f"{why} without Retry-After")


def _judge_answer(ask: Ask, text: str) -> End:
    if ask.aim == "refusal":
        return End("FAILED", f"an answer to {ask.content[:80]!r}")
    if not ask.streams:
        try:
            reasons = [choice["finish_reason"] for choice in json.loads(text)["choices"]]
        except (ValueError, KeyError, TypeError):
            return End("FAILED", f"not a whole answer: {text[:200]}")
        whole = bool(reasons) and all(reasons)
        return End("answered", "200") if whole else End("FAILED", "an answer without its end")
    last = text.rstrip().rpartition("data: ")[2]
    if last == "[DONE]":
        return End("answered", "stream")
    error = _error_of(last)
    return End("error", error) if error else End("FAILED", "a stream without its end")


def _error_of(text: str) -> str | None:
    """The type of the error in a body, if that is what it is."""
    try:
        kind: str = json.loads(text)["error"]["type"]
    except (ValueError, KeyError, TypeError):
        return None
    return None if kind == "internal_error" else kind


@dataclass
class Book:
    """Counts ends by kind of request."""

    ends: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)  # of errors
    failures: list[str] = field(default_factory=list)  # the first ones

    def add(self, ask: Ask, end: End) -> None:
        self.ends.setdefault(ask.kind, Counter())[end.how] += 1
        if end.how == "error":
            self.reasons[end.why] += 1
        if end.how == "FAILED" and len(self.failures) < KEPT_FAILURES:
            when = time.strftime("%H:%M:%S")
            self.failures.append(f"{when} {ask.kind}: {end.why}")

    @property
    def totals(self) -> Counter[str]:
        return sum(self.ends.values(), Counter[str]())
