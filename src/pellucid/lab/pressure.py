"""A prefix cache that is too small: which blocks go first, and what is still found.

Each `KVCacheManager` below takes free blocks in another order and is the engine's in all else. They
are for measuring; the engine has its own order only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.engine.core import EngineCore
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.lab.drive import greedy, serve
from pellucid.lab.fit import spread
from pellucid.lab.result import Figure, Series, Table
from pellucid.lab.subject import Subject

LRU = "least recently used"


class NamedFirst(KVCacheManager):
    """Blocks go in the order in which they were named; to be found again saves none."""

    def _take_free(self) -> int:
        # Those without a name stand in front of the free list, and cost nothing to lose.
        if self._names[next(iter(self._free))] is not None:
            self._free.move_to_end(self._victim(), last=False)
        return super()._take_free()

    def _victim(self) -> int:
        return next(block for block in self._by_name.values() if block in self._free)


class AnyBlock(NamedFirst):
    """Named blocks go by lot."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self._lots = random.Random(0)

    def _victim(self) -> int:
        return self._lots.choice(list(self._free))


ORDERS: dict[str, type[KVCacheManager]] = {
    LRU: KVCacheManager,
    "first in, first out": NamedFirst,
    "random": AnyBlock,
}


@dataclass(frozen=True, slots=True)
class Load:
    """Requests one after the other, each about a document that begins its prompt."""

    documents: int
    document: int  # tokens
    asks: int
    question: int
    answer: int

    @property
    def longest(self) -> int:
        return self.document + self.question + self.answer

    def blocks(self, size: int) -> tuple[int, int]:
        """The fewest that serve one request, and as many as hold all that is ever computed."""
        own = -(-(self.question + self.answer) // size) + 1
        return -(-self.longest // size), self.documents * (self.document // size) + self.asks * own

    def prompts(self, subject: Subject, seed: int) -> list[list[int]]:
        """The n-th most popular document is asked about 1/n times as often as the first (Zipf)."""
        weights = 1 / np.arange(1, self.documents + 1)
        rng = np.random.default_rng(seed)
        chosen = rng.choice(self.documents, self.asks, p=weights / weights.sum())
        return [
            [
                int(about) + 3,  # which tells documents apart
                *subject.prompt(self.document - 1, seed + int(about)),
                ask + 3,
                *subject.prompt(self.question - 1, seed + 1000 + ask),
            ]
            for ask, about in enumerate(chosen)
        ]


def under_pressure(
    core: EngineCore, order: str, num_blocks: int, prompts: list[list[int]], answer: int
) -> dict[str, Any]:
    """One request after the other with `num_blocks` of the pool, of which none is known yet.

    The runner's pool may be larger: the other blocks are not touched.
    """
    kv = core.scheduler.kv = ORDERS[order](num_blocks, core.info.block_size)
    each = [serve(core, [greedy("one", prompt, answer)])["one"] for prompt in prompts]
    held = kv.num_named * core.info.kv_block_bytes
    return {
        "prompt": [len(prompt) for prompt in prompts],
        "cached": [one.num_cached_tokens for one in each],
        "ttft": [one.ttft for one in each],
        "token_ids": [one.token_ids for one in each],
        "pool_bytes": num_blocks * core.info.kv_block_bytes,
        "held_bytes": held,
    }


Runs = dict[tuple[str, int], list[dict[str, Any]]]
"""By order, and share of the blocks that would hold everything, in percent."""


def table(runs: Runs) -> Table:
    rows: list[list[str | float | None]] = []
    for (order, share), made in runs.items():
        hits, ttft = spread([hit_rate(one) for one in made]), spread(all_ttfts(made))
        row: list[str | float | None] = [f"{share}%, {order}", made[0]["pool_bytes"] / 1e6]
        held = spread([one["held_bytes"] / 1e6 for one in made]).median
        rows.append([*row, held, hits.median, hits.low, hits.high, ttft.median])
    columns = ["pool, what goes first", "pool MB", "MB that can be found again"]
    columns += ["% of prompt tokens found", "least", "most", "TTFT ms"]
    return Table("A pool that is too small for all that was said", columns, rows)


def figures(runs: Runs) -> list[Figure]:
    def curve(
        order: str, values: Callable[[list[dict[str, Any]]], list[float]], *, ranged: bool
    ) -> Series:
        each = [made for (name, _), made in runs.items() if name == order]
        spreads = [spread(values(made)) for made in each]
        return Series(
            name=order,
            x=[made[0]["pool_bytes"] / 1e6 for made in each],
            y=[one.median for one in spreads],
            low=[one.low for one in spreads if ranged],
            high=[one.high for one in spreads if ranged],
        )

    def hits(made: list[dict[str, Any]]) -> list[float]:
        return [hit_rate(one) for one in made]

    return [
        Figure(
            name="pool-hits",
            title="What is found, by the size of the pool and by what goes first",
            x_label="pool, MB",
            y_label="% of prompt tokens (median, range of repeats)",
            series=[curve(order, hits, ranged=True) for order in ORDERS],
        ),
        Figure(
            name="pool-ttft",
            title="Time to first token, by the size of the pool and by what goes first",
            x_label="pool, MB",
            # From those that find all to those that find nothing: each range is the whole picture.
            y_label="milliseconds (median of requests)",
            series=[curve(order, all_ttfts, ranged=False) for order in ORDERS],
        ),
    ]


def hit_rate(one: dict[str, Any]) -> float:
    """In percent of all prompt tokens."""
    return 100 * float(sum(one["cached"]) / sum(one["prompt"]))


def all_ttfts(made: list[dict[str, Any]]) -> list[float]:
    return [1e3 * ttft for one in made for ttft in one["ttft"]]


def same_text(runs: Runs) -> bool:
    """Whether no order and no pool changed a token of a repeat."""
    return all(
        one["token_ids"] == first["token_ids"]
        for repeat in zip(*runs.values(), strict=True)
        for first, one in itertools.pairwise(repeat)
    )


def verdict(runs: Runs) -> str:
    """What a small pool loses, and by which order the least."""
    hits = {key: spread([hit_rate(one) for one in made]).median for key, made in runs.items()}
    shares = sorted({share for _, share in runs})
    least, most = shares[0], shares[-1]
    others = [order for order in ORDERS if order != LRU]
    at_least = ", ".join(f"{hits[order, least]:.0f}% with {order}" for order in others)
    wins = sum(all(hits[LRU, s] >= hits[o, s] for o in others) for s in shares)
    draws = sum(all(hits[LRU, s] == hits[o, s] for o in others) for s in shares)
    return (
        f"with {least}% of the blocks that would hold everything, {hits[LRU, least]:.0f}% of the"
        f" prompt tokens are found, and {hits[LRU, most]:.0f}% with {most}%, if the {LRU} goes"
        f" first; {at_least} in the smallest; in {wins} of {len(shares)} pools no other order finds"
        f" more, and in {draws} all find as much"
    )
