"""What the prefix cache saves: a shared system prompt, chats, and a pool that is too small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pellucid.config import CacheSettings
from pellucid.engine.core import EngineCore
from pellucid.lab import pressure
from pellucid.lab.drive import greedy, serve
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import power_law, spread
from pellucid.lab.result import Figure, Findings, Law, Series, Table

SWITCH = {"off": False, "on": True}
WORKLOADS = ("system prompt", "chat")
NOTE = (
    "The engine has one order, least recently used and tails before heads; the others are the"
    " lab's, made to be compared. A pool is a number of blocks; its memory is taken as they are"
    " first written, so pools share one engine here. First in, first out loses the heads of"
    " prompts before their tails, which nothing then finds. No pool is smaller than one request"
    " needs, nor larger than all need."
)


FLAT = 1.25  # times the time of the second request, up to which that of the last is as long


class Settings(msgspec.Struct, frozen=True):
    system: int  # tokens that all users' prompts begin with
    users: int
    question: int  # tokens of each user's own, and of each turn of a chat
    answer: int
    turns: int
    documents: int  # of unequal popularity, asked about where the pool is too small
    document: int  # tokens of each
    asks: int
    pools: list[int]  # percent of the blocks that would hold everything
    repeats: int
    seed: int = 0

    @property
    def load(self) -> pressure.Load:
        return pressure.Load(self.documents, self.document, self.asks, self.question, self.answer)


def run(settings: Settings, lab: Lab) -> Findings:
    chat = settings.turns * (settings.question + settings.answer)
    longest = max(chat, settings.system + settings.question + settings.answer)
    engines = {
        name: lab.subject.engine(prefix_caching=switch, max_model_len=longest, max_num_seqs=1)
        for name, switch in SWITCH.items()
    }
    raw: dict[str, list[list[dict[str, Any]]]] = {
        f"{workload}, {name}": [] for workload in WORKLOADS for name in SWITCH
    }
    rounds = [(repeat, name) for repeat in range(settings.repeats) for name in SWITCH]
    try:
        for core in engines.values():
            serve(core, [greedy("warm-up", lab.subject.prompt(8, 1 << 20), 2)])
        for repeat, name in lab.track(rounds, "rounds"):
            core, seed = engines[name], settings.seed + 1000 * repeat
            raw[f"system prompt, {name}"].append(list(_users(core, settings, lab, seed)))
            raw[f"chat, {name}"].append(list(_turns(core, settings, lab, seed)))
    finally:
        for core in engines.values():
            core.runner.close()
    return _findings(raw, _pressure(settings, lab))


def _pressure(settings: Settings, lab: Lab) -> pressure.Runs:
    """All pools and orders on one engine, whose blocks are given to another manager each time."""
    load = settings.load
    fewest, enough = load.blocks(CacheSettings().block_size)
    core = lab.subject.engine(
        max_model_len=load.longest, max_num_seqs=1, num_kv_blocks=max(fewest, enough)
    )
    runs: pressure.Runs = {
        (order, share): [] for share in sorted(settings.pools) for order in pressure.ORDERS
    }
    rounds = [(repeat, *key) for repeat in range(settings.repeats) for key in runs]
    try:
        serve(core, [greedy("warm-up", lab.subject.prompt(8, 1 << 20), 2)])
        for repeat, order, share in lab.track(rounds, "pools"):
            prompts = load.prompts(lab.subject, settings.seed + 100_000 * repeat)
            blocks = min(enough, max(fewest, enough * share // 100))
            made = pressure.under_pressure(core, order, blocks, prompts, settings.answer)
            runs[order, share].append(made)
    finally:
        core.runner.close()
    return runs


def _users(core: EngineCore, settings: Settings, lab: Lab, seed: int) -> Iterator[dict[str, Any]]:
    """One user after the other, each with a question of their own behind the same system prompt."""
    # The first token tells repeats apart: the cache must not know a prompt from the one before.
    system = [seed % 97 + 3, *lab.subject.prompt(settings.system - 1, seed)]
    for user in range(settings.users):
        own = [user + 3, *lab.subject.prompt(settings.question - 1, seed + user + 1)]
        yield _ask(core, system + own, settings.answer)


def _turns(core: EngineCore, settings: Settings, lab: Lab, seed: int) -> Iterator[dict[str, Any]]:
    """One chat: every turn's prompt is all that was said before, and a new question."""
    said = [seed % 89 + 4]
    for turn in range(settings.turns):
        size = settings.question - (turn == 0)
        said += lab.subject.prompt(size, seed + 500 + turn)
        one = _ask(core, said, settings.answer)
        yield one
        said = said + one["token_ids"]


def _ask(core: EngineCore, prompt: list[int], answer: int) -> dict[str, Any]:
    one = serve(core, [greedy("one", prompt, answer)])["one"]
    return {
        "prompt": len(prompt),
        "cached": one.num_cached_tokens,
        "ttft": one.ttft,
        "token_ids": one.token_ids,
    }


def _findings(raw: dict[str, list[list[dict[str, Any]]]], pools: pressure.Runs) -> Findings:
    rows: list[list[str | float | None]] = []
    figures, laws, growth = [], list[Law](), dict[str, float]()
    for workload in WORKLOADS:
        series = []
        for name in SWITCH:
            repeats = raw[f"{workload}, {name}"]
            # The first request can find nothing of its own repeat.
            later = spread([one["ttft"] * 1e3 for run in repeats for one in run[1:]])
            first = spread([run[0]["ttft"] * 1e3 for run in repeats])
            asked = sum(one["prompt"] for run in repeats for one in run)
            found = sum(one["cached"] for run in repeats for one in run)
            rows.append([f"{workload}, {name}", found / asked * 100, first.median])
            rows[-1] += [later.median, later.low, later.high]
            curve = _curve(name, repeats)
            series.append(curve)
            if name == "on" and len(curve.y) > 1:
                growth[workload] = curve.y[-1] / curve.y[1]
            if workload == "chat":
                prompts = [float(one["prompt"]) for one in repeats[0]][1:]
                label = f"{workload}, {name}: TTFT after the first turn"
                if len(prompts) > 1:
                    of = ("prompt tokens", "ms")
                    laws.append(power_law(label, prompts, curve.y[1:], of=of))
        figures.append(
            Figure(
                name=workload.replace(" ", "-"),
                title=f"Time to first token: {workload}",
                x_label="turn" if workload == "chat" else "user",
                y_label="milliseconds (median, range)",
                series=series,
            )
        )
    columns = ["workload, cache", "% of prompt tokens found", "first request, TTFT ms"]
    columns += ["later ones, TTFT ms", "least", "most"]
    return Findings(
        tables=[Table("Hits and time to first token", columns, rows), pressure.table(pools)],
        figures=[*figures, *pressure.figures(pools)],
        laws=laws,
        raw={**raw, "pools": {f"{share}%, {order}": m for (order, share), m in pools.items()}},
        notes=[NOTE],
        conclusion=_conclusion(
            rows,
            growth,
            pressure.verdict(pools),
            _same_text(raw) and pressure.same_text(pools),
        ),
    )


def _curve(name: str, repeats: list[list[dict[str, Any]]]) -> Series:
    each = [spread([one["ttft"] * 1e3 for one in same]) for same in zip(*repeats, strict=True)]
    return Series(
        name=f"cache {name}",
        x=[float(i + 1) for i in range(len(each))],
        y=[one.median for one in each],
        low=[one.low for one in each],
        high=[one.high for one in each],
    )


def _same_text(raw: dict[str, list[list[dict[str, Any]]]]) -> bool:
    def texts(name: str) -> list[Any]:
        kept = (raw[f"{workload}, {name}"] for workload in WORKLOADS)
        return [one["token_ids"] for repeats in kept for run in repeats for one in run]

    return texts("off") == texts("on")


def _on_flatness(growth: dict[str, float]) -> str:
    """Whether time to first token stays, from the first request that can find something on."""
    if not growth:
        return "There is but one request to each beginning, so nothing can be found."
    told = [f"{ratio:.2f} times with a {workload}" for workload, ratio in growth.items()]
    grown = [workload for workload, ratio in growth.items() if ratio > FLAT]
    verdict = "which is flat, as expected"
    if grown:
        verdict = f"which is not flat, against the hypothesis, with a {' and a '.join(grown)}"
    return f"From the second request to the last it becomes {' and '.join(told)}, {verdict}."


def _conclusion(
    rows: list[list[Any]], growth: dict[str, float], pools: str, same_text: bool
) -> list[str]:
    table = {row[0]: row for row in rows}
    parts = []
    for workload in WORKLOADS:
        off, on = table[f"{workload}, off"], table[f"{workload}, on"]
        way = "sooner" if on[3] <= off[3] else "later"
        ratio = max(off[3] / on[3], on[3] / off[3])
        parts.append(
            f"with {'a shared system prompt' if workload == 'system prompt' else 'a chat'}"
            f" {on[1]:.0f}% of the prompt tokens are found, and later requests have their first"
            f" token {ratio:.1f} times {way}, after {on[3]:.1f} instead of {off[3]:.1f} ms"
        )
    text = "; ".join(parts)
    same = "the same tokens" if same_text else "not the same tokens"
    return [
        f"{text[0].upper()}{text[1:]}. {_on_flatness(growth)}",
        f"{pools[0].upper()}{pools[1:]}. With the cache on and off, and in every pool, answers are"
        f" {same}.",
    ]


EXPERIMENT = Experiment(
    name="prefix-cache",
    question="What does the prefix cache save for shared system prompts and for chats?",
    hypothesis=(
        "What was computed once is found again, so that only a request's own tokens are left: time"
        " to first token stays flat over users and turns, and answers stay the same. Where memory"
        " is short, to drop the least recently used keeps more of what is asked for than to drop"
        " what came first, or any."
    ),
    method=(
        "Two engines, with the cache and without, take turns at the same requests, one after the"
        " other: users with a common system prompt and a question of their own; then a chat in"
        " which each turn sends all that was said. Then questions about documents, the n-th most"
        " popular 1/n times as often as the first, in pools too small for all, with each order in"
        " which blocks can go. Every repeat has texts of its own."
    ),
    quick=Settings(
        system=384,
        users=5,
        question=24,
        answer=8,
        turns=6,
        documents=6,
        document=128,
        asks=14,
        pools=[25, 50, 100],
        repeats=1,
    ),
    full=Settings(
        system=1024,
        users=12,
        question=48,
        answer=32,
        turns=10,
        documents=10,
        document=256,
        asks=40,
        pools=[15, 30, 45, 60, 80, 100],
        repeats=3,
    ),
    run=run,
)
