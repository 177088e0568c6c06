"""Prefill and decode apart: what each costs, and how chunks of a prompt disturb other streams."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import msgspec

from pellucid.engine.core import EngineCore
from pellucid.lab.drive import greedy, serve
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import power_law, spread
from pellucid.lab.result import Figure, Findings, Series, Table

DECODED = 8  # tokens behind each prompt, whose median is the time of a decode step
SETTLED = 4  # steps of the streams alone, before the long prompt comes
NOISE = 0.1  # of a time, up to which a difference means nothing


class Settings(msgspec.Struct, frozen=True):
    lengths: list[int]  # of prompts
    chunks: list[int]  # token budgets of a step
    streams: int  # that decode while a prompt of the longest length comes
    repeats: int
    seed: int = 0


def run(settings: Settings, lab: Lab) -> Findings:
    phases = _phases(settings, lab)
    stalls: dict[str, list[dict[str, Any]]] = {str(chunk): [] for chunk in settings.chunks}
    for chunk in lab.track(settings.chunks, "chunk sizes"):
        # A request alone may have all of a step.
        core = _engine(settings, lab, max_num_batched_tokens=chunk, max_chunk_tokens=chunk)
        try:
            _disturb(core, settings, lab, 1 << 20)  # warm-up
            for repeat in range(settings.repeats):
                stalls[str(chunk)].append(_disturb(core, settings, lab, settings.seed + repeat))
        finally:
            core.runner.close()
    return _findings(settings, phases, stalls)


def _engine(settings: Settings, lab: Lab, **limits: Any) -> EngineCore:
    # Streams go on until they are aborted, which is after every chunk of the prompt.
    longest = 2 * max(settings.lengths) + 64
    seats = settings.streams + 1
    return lab.subject.engine(
        max_model_len=longest, max_num_seqs=seats, prefix_caching=False, **limits
    )


def _phases(settings: Settings, lab: Lab) -> dict[str, dict[str, list[float]]]:
    """Seconds to the first token, and of a decode step behind it, by length of the prompt."""
    phases: dict[str, dict[str, list[float]]] = {}
    core = _engine(settings, lab)
    rounds = [(r, length) for r in range(settings.repeats) for length in settings.lengths]
    try:
        serve(core, [greedy("warm-up", lab.subject.prompt(max(settings.lengths), 1 << 20), 2)])
        for repeat, length in lab.track(rounds, "prompts"):
            prompt = lab.subject.prompt(length, settings.seed + repeat)
            one = serve(core, [greedy("one", prompt, 1 + DECODED)])["one"]
            gaps = [b - a for a, b in itertools.pairwise(one.token_times)]
            kept = phases.setdefault(str(length), {"prefill": [], "decode": []})
            kept["prefill"].append(one.ttft)
            kept["decode"].append(statistics.median(gaps))
    finally:
        core.runner.close()
    return phases


def _disturb(core: EngineCore, settings: Settings, lab: Lab, seed: int) -> dict[str, Any]:
    """Seconds of the streams' steps alone and beside a long prompt, and that prompt's TTFT."""
    longest = max(settings.lengths)
    names = [f"stream {i}" for i in range(settings.streams)]
    for index, name in enumerate(names):
        core.add(greedy(name, lab.subject.prompt(8, seed + index), longest))
    started: set[str] = set()
    while len(started) < settings.streams:
        started |= {delta.request_id for delta in core.step().deltas}
    alone = [_step(core)[0] for _ in range(SETTLED)]
    core.add(greedy("long", lab.subject.prompt(longest, seed), 2))
    beside = []
    arrived = False
    while not arrived:
        seconds, served = _step(core)
        beside.append(seconds)
        arrived = "long" in served
    core.abort([*names, "long"])
    core.step()
    return {"alone": alone, "beside": beside, "ttft": sum(beside)}


def _step(core: EngineCore) -> tuple[float, set[str]]:
    """Seconds of a step, in which every running stream gets a token, and who got one."""
    begin = time.perf_counter()
    deltas = core.step().deltas
    return time.perf_counter() - begin, {delta.request_id for delta in deltas if delta.token_ids}


def _findings(
    settings: Settings,
    phases: dict[str, dict[str, list[float]]],
    stalls: dict[str, list[dict[str, Any]]],
) -> Findings:
    lengths = list(map(float, settings.lengths))
    timed = {
        phase: [spread([s * 1e3 for s in phases[str(n)][phase]]) for n in settings.lengths]
        for phase in ("prefill", "decode")
    }
    per_token: list[list[str | float | None]] = []
    for length, prefill, decode in zip(lengths, timed["prefill"], timed["decode"], strict=True):
        row: list[str | float | None] = [f"{length:.0f}", prefill.median, prefill.low, prefill.high]
        per_token.append([*row, prefill.median / length, decode.median])
    rows: list[list[str | float | None]] = []
    for chunk, runs in stalls.items():
        worst = spread([max(one["beside"]) * 1e3 for one in runs])
        ttft = spread([one["ttft"] * 1e3 for one in runs])
        alone = spread([statistics.median(one["alone"]) * 1e3 for one in runs])
        steps = float(len(runs[0]["beside"]))
        rows.append([chunk, alone.median, worst.median, worst.low, worst.high, ttft.median, steps])
    laws = [
        power_law(f"{phase} by length of the prompt", lengths, medians, of=("tokens", "ms"))
        for phase, each in timed.items()
        if len(medians := [one.median for one in each]) > 1
    ]
    alone_columns = ["prompt tokens", "first token ms", "least", "most", "per token ms"]
    columns = ["tokens per step", "ITL alone ms", "worst ITL ms", "least", "most"]
    return Findings(
        tables=[
            Table("One prompt alone", [*alone_columns, "decode ms"], per_token),
            Table(
                f"{settings.streams} streams beside a prompt of {max(settings.lengths)} tokens",
                [*columns, "TTFT of the prompt ms", "steps"],
                rows,
            ),
        ],
        figures=[_by_length(lengths, timed), _by_chunk(settings, rows)],
        laws=laws,
        raw={"phases": phases, "stalls": stalls},
        conclusion=_conclusion(per_token, rows),
    )


def _by_length(lengths: list[float], timed: dict[str, Any]) -> Figure:
    return Figure(
        name="phases",
        title="Prefill, and a decode step behind it",
        x_label="prompt tokens",
        y_label="milliseconds (median, range)",
        series=[
            Series(
                name=phase,
                x=lengths,
                y=[one.median for one in each],
                low=[one.low for one in each],
                high=[one.high for one in each],
            )
            for phase, each in timed.items()
        ],
        log_x=True,
        log_y=True,
    )


def _by_chunk(settings: Settings, rows: list[list[Any]]) -> Figure:
    x = list(map(float, settings.chunks))
    return Figure(
        name="chunks",
        title="Streams beside a long prompt",
        x_label="tokens per step",
        y_label="milliseconds",
        series=[
            Series(name="ITL alone", x=x, y=[row[1] for row in rows], style="dashed"),
            Series(
                name="worst ITL beside it",
                x=x,
                y=[row[2] for row in rows],
                low=[row[3] for row in rows],
                high=[row[4] for row in rows],
            ),
            Series(name="TTFT of the prompt", x=x, y=[row[5] for row in rows]),
        ],
        log_x=True,
        log_y=True,
    )


def _conclusion(per_token: list[list[Any]], rows: list[list[Any]]) -> list[str]:
    short, long = per_token[0], per_token[-1]
    calm, rough = min(rows, key=lambda row: row[2]), max(rows, key=lambda row: row[2])
    soon = min(rows, key=lambda row: row[5])
    return [
        f"A prompt token costs {short[4]:.2f} ms in a prompt of {short[0]} and {long[4]:.2f} ms in"
        f" one of {long[0]}; a decoded token behind them costs {short[5]:.1f} and {long[5]:.1f} ms,"
        f" {long[5] / long[4]:.0f} times as much as one of the longest prompt.",
        f"Beside a long prompt the worst gap of a stream is {calm[2]:.0f} ms with {calm[0]} tokens"
        f" per step and {rough[2]:.0f} ms with {rough[0]}; the prompt's first token comes soonest"
        f" with {soon[0]}, after {soon[5]:.0f} ms instead of {calm[5]:.0f} ms with {calm[0]}."
        f"{_on_larger(rows, soon, rough)}",
    ]


def _on_larger(rows: list[list[Any]], soon: list[Any], rough: list[Any]) -> str:
    """Where larger steps no longer do what the hypothesis says, by more than noise."""
    largest = rows[-1]
    fails = []
    if largest[5] > (1 + NOISE) * soon[5]:
        fails.append(f"steps larger than {soon[0]} do not finish the prompt sooner")
    if largest[2] < (1 - NOISE) * rough[2]:
        fails.append(f"those larger than {rough[0]} make nobody wait longer")
    return f" Against the hypothesis {' and '.join(fails)}." if fails else ""


EXPERIMENT = Experiment(
    name="prefill-decode",
    question="What do prefill and decode cost, and how do prompts disturb other streams?",
    hypothesis=(
        "A prompt token is many times cheaper than a decoded one, since a step's tokens share the"
        " weights; larger steps finish a prompt sooner and make everybody else wait longer."
    ),
    method=(
        "Prompts of each length alone through the engine, then a long prompt that arrives while"
        " others decode, with different numbers of tokens per step (--max-num-batched-tokens and"
        " --max-chunk-tokens); wall-clock around whole steps, after a warm-up."
    ),
    quick=Settings(lengths=[32, 128, 512], chunks=[32, 64, 128, 256, 512], streams=3, repeats=2),
    full=Settings(
        lengths=[32, 64, 128, 256, 512, 1024, 2048],
        chunks=[32, 64, 128, 256, 512, 1024, 2048],
        streams=7,
        repeats=5,
    ),
    run=run,
)
