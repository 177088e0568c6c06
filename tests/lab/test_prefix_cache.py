"""The prefix cache, alone and short of memory: it finds what a plain list of blocks would."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.lab.pressure import LRU, ORDERS, same_text, verdict
from tests.lab.test_experiments import LAB, check, module


def test_prefix_cache() -> None:
    experiment = module("prefix_cache")
    settings = experiment.Settings(
        system=64,
        users=3,
        question=16,
        answer=4,
        turns=3,
        documents=3,
        document=32,
        asks=12,
        pools=[25, 60, 100],
        repeats=2,
    )
    findings = experiment.run(settings, LAB)
    check(findings)
    rows = {row[0]: row for row in findings.tables[0].rows}
    assert rows["system prompt, off"][1] == rows["chat, off"][1] == 0
    # Of 3 prompts of 80 tokens, two find the 64 that they share, which are whole blocks.
    assert rows["system prompt, on"][1] == pytest.approx(100 * 2 * 64 / (3 * 80))
    chats = findings.raw["chat, on"]
    assert [one["prompt"] for one in chats[0]] == [16, 36, 56]
    assert [[one["cached"] for one in run] for run in chats] == [[0, 16, 32]] * 2
    assert findings.conclusion[1].endswith("in every pool, answers are the same tokens.")
    pools = findings.raw["pools"]
    assert len(pools) == 9
    size = pools["100%, random"][0]["pool_bytes"] // settings.load.blocks(16)[1]
    for repeat in range(2):
        prompts = settings.load.prompts(LAB.subject, 100_000 * repeat)
        for name, made in pools.items():
            one, order = made[repeat], name.partition(", ")[2]
            cached = brute_force(order, prompts, one["token_ids"], one["pool_bytes"] // size)
            if cached is not None:
                assert one["cached"] == cached, name
        # With room for all, every document is found but at its first mention.
        firsts = len({prompt[0] for prompt in prompts})
        for order in ORDERS:
            assert sum(pools[f"100%, {order}"][repeat]["cached"]) == 32 * (12 - firsts)


def brute_force(
    order: str, prompts: list[list[int]], answers: list[list[int]], num_blocks: int
) -> list[int] | None:
    """Tokens found of each prompt: a list of free blocks, each by the text up to its end."""
    free: list[tuple[int, ...] | None] = [None] * num_blocks
    named: list[tuple[int, ...]] = []
    cached = []
    for prompt, answer in zip(prompts, answers, strict=True):
        text = prompt + answer[:-1]
        chain = [tuple(text[:end]) for end in range(16, len(text) + 1, 16)]
        known = [name for name in chain[: (len(prompt) - 1) // 16] if name in free]
        found = next((i for i, name in enumerate(chain) if name not in known), len(chain))
        cached.append(16 * found)
        for name in chain[:found]:
            free.remove(name)
        for _ in range(-(-len(text) // 16) - found):
            victim = free[0]
            if victim is not None and order == "first in, first out":
                victim = next(name for name in named if name in free)
            elif victim is not None and order != LRU:
                return None  # random
            free.remove(victim)
            if victim is not None:
                named.remove(victim)
        # A tail whose text is elsewhere already gains no name.
        new = [name for name in chain[found:] if name not in named]
        named += new
        free[:0] = [None] * (-(-len(text) // 16) - found - len(new))
        free += [name for name in reversed(chain) if name in chain[:found] or name in new]
    return cached


def test_prefix_cache_says_which_is_sooner() -> None:
    conclude = module("prefix_cache")._conclusion
    rows = [
        [f"{w}, {c}", 0.0, 9.0, ms]
        for w in ("system prompt", "chat")
        for c, ms in (("off", 4.0), ("on", 8.0))
    ]
    first, second = conclude(rows, {"chat": 1.5}, "half is found", False)
    assert first.count("2.0 times later, after 8.0 instead of 4.0 ms") == 2
    assert first.endswith(
        "becomes 1.50 times with a chat, which is not flat, against the hypothesis, with a chat."
    )
    assert conclude(rows, {"chat": 1.1}, "half", False)[0].endswith("which is flat, as expected.")
    assert second.startswith("Half is found. ")
    assert second.endswith("not the same tokens.")


def test_prefix_cache_says_which_order_finds_more() -> None:
    def run(order: str, share: int, found: int, token: int = 1) -> Any:
        one = {"prompt": [50, 50], "cached": [0, found], "token_ids": [[token]]}
        return (order, share), [one]

    found = {LRU: (30, 80), "first in, first out": (10, 80), "random": (40, 80)}
    runs = dict(
        run(order, share, n)
        for order, ns in found.items()
        for share, n in zip((25, 100), ns, strict=True)
    )
    text = verdict(runs)
    assert "with 25% of the blocks that would hold everything, 30% of the prompt tokens" in text
    assert "80% with 100%" in text
    assert "10% with first in, first out, 40% with random" in text
    assert text.endswith("in 1 of 2 pools no other order finds more, and in 1 all find as much")
    assert same_text(runs)
    assert not same_text(runs | dict([run("random", 25, 40, token=2)]))
