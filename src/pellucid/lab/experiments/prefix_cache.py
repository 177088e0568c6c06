"""What the prefix cache saves: a shared system prompt, and chats of several turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pellucid.engine.core import EngineCore
from pellucid.lab.drive import greedy, serve
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import power_law, spread
from pellucid.lab.result import Figure, Findings, Law, Series, Table

SWITCH = {"off": False, "on": True}
WORKLOADS = ("system prompt", "chat")


class Settings(msgspec.Struct, frozen=True):
    system: int  # tokens that all users' prompts begin with
    users: int
    question: int  # tokens of each user's own, and of each turn of a chat
    answer: int
    turns: int
    repeats: int
    seed: int = 0


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
    return _findings(raw)


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


def _findings(raw: dict[str, list[list[dict[str, Any]]]]) -> Findings:
    rows: list[list[str | float | None]] = []
    figures, laws = [], list[Law]()
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
        tables=[Table("Hits and time to first token", columns, rows)],
        figures=figures,
        laws=laws,
        raw=dict(raw),
        conclusion=_conclusion(rows, _same_text(raw)),
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


def _conclusion(rows: list[list[Any]], same_text: bool) -> list[str]:
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
    return [text[0].upper() + text[1:] + ".", f"With the cache on and off, answers are {same}."]


EXPERIMENT = Experiment(
    name="prefix-cache",
    question="What does the prefix cache save for shared system prompts and for chats?",
    hypothesis=(
        "What was computed once is found again, so that only a request's own tokens are left: time"
        " to first token stays flat over users and turns, and answers stay the same."
    ),
    method=(
        "Two engines, with the cache and without, take turns at the same requests, one after the"
        " other: users with a common system prompt and a question of their own; then a chat in"
        " which each turn sends all that was said. Every repeat has texts of its own."
    ),
    quick=Settings(system=384, users=5, question=24, answer=8, turns=6, repeats=1),
    full=Settings(system=1024, users=12, question=48, answer=32, turns=10, repeats=3),
    run=run,
)
