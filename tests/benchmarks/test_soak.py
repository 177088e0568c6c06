"""The soak's bookkeeping: which ends of a request it lets pass."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
from benchmarks.soak.outcome import Book, End, judge
from benchmarks.soak.traffic import CHAT, Ask, bad, good, next_ask
from benchmarks.soak.verdict import checks, table
from benchmarks.soak.watch import Sample, growth, is_flat

WHOLE = '{"choices": [{"finish_reason": "stop"}]}'
OPEN = '{"choices": [{"finish_reason": null}]}'
ERROR = '{"error": {"type": "engine_dead_error"}}'
BUG = '{"error": {"type": "internal_error"}}'
SOON = {"retry-after": "2"}


@pytest.mark.parametrize(
    ("aim", "streams", "status", "headers", "text", "how"),
    [
        ("answer", False, 200, {}, WHOLE, "answered"),
        ("answer", False, 200, {}, OPEN, "FAILED"),
        ("answer", False, 200, {}, "data: {}", "FAILED"),
        ("answer", True, 200, {}, "data: {}\n\ndata: [DONE]\n\n", "answered"),
        ("answer", True, 200, {}, f"data: {{}}\n\ndata: {ERROR}\n\n", "error"),
        ("answer", True, 200, {}, f"data: {OPEN}\n\n", "FAILED"),
        ("answer", True, 200, {}, f"data: {BUG}\n\n", "FAILED"),
        ("answer", False, 429, SOON, ERROR, "busy"),
        ("answer", False, 429, {}, ERROR, "FAILED"),
        ("answer", False, 503, SOON, ERROR, "error"),
        ("answer", False, 503, {}, ERROR, "FAILED"),
        ("answer", False, 400, {}, ERROR, "FAILED"),
        ("answer", False, 500, {}, BUG, "FAILED"),
        ("answer", False, 502, SOON, "<html>", "FAILED"),
        ("timeout", False, 504, {}, ERROR, "error"),
        ("refusal", False, 400, {}, ERROR, "refused"),
        ("refusal", False, 500, {}, ERROR, "FAILED"),
        ("refusal", False, 200, {}, WHOLE, "FAILED"),
    ],
)
def test_ends(aim: Any, streams: bool, status: int, headers: Any, text: str, how: str) -> None:
    ask = Ask("chat", CHAT, b"{}", aim, streams=streams)
    assert judge(ask, status, headers, text).how == how


def test_memory_that_grows_on_is_told_from_memory_that_levels_off() -> None:
    mib = 1 << 20
    levels = [min(100 + 10 * k, 300) * mib for k in range(100)]
    leaks = [(100 + 2 * k) * mib for k in range(100)]
    assert is_flat(levels)
    assert growth(levels) == 0
    assert not is_flat(leaks)


def test_traffic_is_of_every_kind_and_the_same_for_a_seed() -> None:
    asks = [next_ask(random.Random(seed)) for seed in range(2000)]
    assert {ask.aim for ask in asks} == {"answer", "refusal", "timeout", "leave"}
    assert Counter(ask.streams for ask in asks)[True] > 500
    for make in (bad, lambda chance: good(chance, streams=True)):
        assert make(random.Random(3)) == make(random.Random(3))


def test_a_verdict_names_what_leaks() -> None:
    before = Sample(0.0, 0.1, 10, 5, 1, 3, 5, 1, 7, 10, 5, 2, 0.0, 0.0, 0.0, 0.0)
    book = Book()
    book.add(Ask("chat", CHAT, b""), End("answered"))
    found = checks(book, before, before, [before] * 9, [1.0, 2.0], 0)
    assert all(check.holds for check in found)
    assert "kinds of good ones | 1 | 0 |" in table(book, 1, found)
    after = dataclasses.replace(before, frontend_fds=6, kv_usage=0.1)
    failed = {c.name for c in checks(book, before, after, [before], [None], 0) if not c.holds}
    assert failed == {
        "nothing is held at the end",
        "frontend fds as before",
        "every killed engine was replaced",
    }
