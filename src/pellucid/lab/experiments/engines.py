"""One workload under this engine, llama.cpp and transformers."""

from __future__ import annotations

import itertools
import operator
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from pellucid.errors import ConfigError
from pellucid.lab.drive import greedy, serve
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import spread
from pellucid.lab.result import Figure, Findings, Series, Table

OURS = "pellucid"  # what the others are compared with
LLAMA = "llama.cpp runner"
PHASES = ("prefill", "decode")
ABOUT = 1.5  # the hypothesis holds if times and bytes are nearer to each other than this


class Settings(msgspec.Struct, frozen=True):
    prompt: int  # tokens
    answer: int
    batches: list[int]
    repeats: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one batch: new tokens of each row, and the seconds at which each was there."""

    token_ids: list[list[int]]
    times: list[list[float]]


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second; the seconds to the last first token belong to prefill."""

    prefill: float
    decode: float
    token_ids: list[list[int]]


@dataclass(frozen=True, slots=True)
class Engine:
    """`answer` takes a batch of prompts; `weight_bytes` is what a decode step reads of weights."""

    answer: Callable[[list[list[int]]], Answers]
    weight_bytes: float


def run(settings: Settings, lab: Lab) -> Findings:
    with ExitStack() as closing:
        engines, notes = _engines(settings, lab, closing)
        present = {name: engine for name, engine in engines.items() if engine is not None}
        for engine in present.values():
            for batch in settings.batches:  # warm-up: every shape once
                engine.answer(_prompts(settings, lab, batch, 1 << 20))
        measured: dict[str, list[dict[str, Rates]]] = {str(b): [] for b in settings.batches}
        rounds = [(r, b) for r in range(settings.repeats) for b in settings.batches]
        for repeat, batch in lab.track(rounds, "rounds"):
            # Who begins changes from round to round.
            names = [*present][repeat % len(present) :] + [*present][: repeat % len(present)]
            prompts = _prompts(settings, lab, batch, settings.seed + 1000 * (repeat + 1))
            made = {name: rates(prompts, present[name].answer(prompts)) for name in names}
            measured[str(batch)].append({name: made[name] for name in present})
    return _findings(settings, engines, measured, notes)


def _prompts(settings: Settings, lab: Lab, batch: int, seed: int) -> list[list[int]]:
    return [lab.subject.prompt(settings.prompt, seed + row) for row in range(batch)]


def rates(prompts: list[list[int]], made: Answers) -> Rates:
    """Prefill until all have their first token; decode, what comes while all rows run."""
    begin, end = max(row[0] for row in made.times), min(row[-1] for row in made.times)
    tokens = sum(begin < time <= end for row in made.times for time in row)
    prefill = sum(map(len, prompts)) / begin
    return Rates(prefill, tokens / (end - begin) if tokens else 0.0, made.token_ids)


def _engines(
    settings: Settings, lab: Lab, closing: ExitStack
) -> tuple[dict[str, Engine | None], list[str]]:
    """All there are; None for one that is absent, with a note that says why."""
    engines: dict[str, Engine | None] = {}
    notes = []
    for name, options in ((OURS, {}), (LLAMA, {"runner": "llama-cpp"})):
        try:
            engines[name], kernels = _core(settings, lab, closing, options)
            notes.append(f"{name} computes with {kernels}.")
        except ConfigError as error:
            if name == OURS:
                raise
            engines[name] = None
            notes.append(f"{name} is absent: {error}.")
    for dtype in ("bfloat16", "float32"):
        name = f"transformers {dtype}"
        problem = _obstacle(lab, dtype)
        engines[name] = None if problem else _transformers(settings, lab, dtype)
        if problem:
            notes.append(f"{name} is absent: {problem}.")
    notes.append(
        "The runner has llama.cpp compute the file's types as they are, of which it is faster with"
        " some (Q4_0) than with others (Q4_1). It by itself, with both, and more engines, each in a"
        " process and an environment of its own, are compared by `python -m benchmarks.peers` in"
        " the repository."
    )
    return engines, notes


def _core(
    settings: Settings, lab: Lab, closing: ExitStack, options: dict[str, Any]
) -> tuple[Engine, str]:
    """This engine with a runner, and whose kernels that has."""
    import torch

    from pellucid.lab.torch_threads import on_threads

    core = lab.subject.engine(
        max_model_len=settings.prompt + settings.answer,
        max_num_seqs=max(settings.batches),
        prefix_caching=False,
        **options,
    )
    closing.callback(lambda: core.runner.close())

    def answer(prompts: list[list[int]]) -> Answers:
        requests = [greedy(str(i), ids, settings.answer) for i, ids in enumerate(prompts)]
        served = serve(core, requests)
        each = [served[str(i)] for i in range(len(prompts))]
        return Answers([one.token_ids for one in each], [one.token_times for one in each])

    wanted = torch.get_num_threads()  # by this runner
    return Engine(on_threads(wanted, answer), core.info.weight_bytes), core.info.kernels


def _obstacle(lab: Lab, dtype: str) -> str | None:
    import torch

    from pellucid.lab import hugging_face
    from pellucid.runner.device import pick_dtype

    if dtype == "bfloat16" and pick_dtype("auto", torch.device("cpu")) != torch.bfloat16:
        return "this CPU does not compute in bfloat16"
    return hugging_face.obstacle(lab.subject.config)


def _transformers(settings: Settings, lab: Lab, dtype: str) -> Engine:
    import torch

    from pellucid.lab import hugging_face
    from pellucid.lab.torch_threads import on_threads
    from pellucid.runner.device import compute_threads

    subject = lab.subject
    model = hugging_face.load(subject.config, subject.open_weights(), getattr(torch, dtype))

    def answer(prompts: list[list[int]]) -> Answers:
        token_ids, times = hugging_face.decode(model, prompts, settings.answer)
        return Answers(token_ids, [times] * len(prompts))

    size = sum(part.numel() * part.itemsize for part in model.parameters())
    return Engine(on_threads(compute_threads(), answer), size)


def _findings(
    settings: Settings,
    engines: dict[str, Engine | None],
    measured: dict[str, list[dict[str, Rates]]],
    notes: list[str],
) -> Findings:
    tables = [_table(phase, settings, engines, measured) for phase in PHASES]
    about: list[list[str | float | None]] = [
        [name, engine.weight_bytes / 1e6, _agreement(name, measured)]
        if engine
        else [name, None, None]
        for name, engine in engines.items()
    ]
    columns = ["engine", "weights MB", f"of {settings.answer} tokens like {OURS}'s (median)"]
    present = [name for name, engine in engines.items() if engine]
    return Findings(
        tables=[*tables, Table("What is read, and what is written", columns, about)],
        figures=[_figure(phase, settings, present, measured) for phase in PHASES],
        notes=notes,
        raw={
            batch: [msgspec.to_builtins(one) for one in rounds]
            for batch, rounds in measured.items()
        },
        conclusion=_conclusion(tables[0].rows, tables[1].rows, about),
    )


def _table(
    phase: str,
    settings: Settings,
    engines: dict[str, Engine | None],
    measured: dict[str, list[dict[str, Rates]]],
) -> Table:
    rows: list[list[str | float | None]] = []
    for name, engine in engines.items():
        if engine is None:
            rows.append([f"{name} (absent)", *[None] * 7])
            continue
        for batch, rounds in measured.items():
            rate = spread([getattr(one[name], phase) for one in rounds])
            ratio = spread(
                [getattr(one[OURS], phase) / getattr(one[name], phase) for one in rounds]
            )
            row: list[str | float | None] = [name, float(batch), rate.median, rate.low, rate.high]
            rows.append([*row, ratio.median, ratio.low, ratio.high])
    columns = ["engine", "batch", f"{phase} tokens/s", "least", "most"]
    columns += [f"{OURS} is so many times as fast", "least times", "most times"]
    lengths = f"{settings.prompt} tokens in, {settings.answer} out"
    return Table(f"{phase.capitalize()}: {lengths}", columns, rows)


def _agreement(name: str, measured: dict[str, list[dict[str, Rates]]]) -> float:
    """How many tokens an answer has in common with ours from its beginning."""
    return statistics.median(
        float(sum(1 for _ in itertools.takewhile(bool, map(operator.eq, mine, other))))
        for rounds in measured.values()
        for one in rounds
        for mine, other in zip(one[OURS].token_ids, one[name].token_ids, strict=True)
    )


def _figure(
    phase: str,
    settings: Settings,
    present: list[str],
    measured: dict[str, list[dict[str, Rates]]],
) -> Figure:
    series = []
    for name in present:
        each = [
            spread([getattr(one[name], phase) for one in rounds]) for rounds in measured.values()
        ]
        series.append(
            Series(
                name=name,
                x=list(map(float, settings.batches)),
                y=[one.median for one in each],
                low=[one.low for one in each],
                high=[one.high for one in each],
            )
        )
    return Figure(
        name=phase,
        title=f"{phase.capitalize()} by batch",
        x_label="sequences",
        y_label="tokens/s (median, range)",
        series=series,
        log_x=True,
        log_y=True,
    )


def _conclusion(prefill: list[Any], decode: list[Any], about: list[Any]) -> list[str]:
    """Who is fastest, and whether what the hypothesis says of bytes and of prefill is so."""
    size = {row[0]: row[1] for row in about if row[1] is not None}
    first = next(row[1] for row in decode if row[1] is not None)
    slower = {row[0]: row[5] for row in decode if row[1] == first and row[0] != OURS}
    bytes_told = [
        f"{name} reads {size[name] / size[OURS]:.1f} times the bytes and takes {times:.1f} times as"
        " long"
        for name, times in slower.items()
    ]
    text = f"Decode: {_ranking(decode)}"
    if bytes_told:
        text += f". In a batch of {first:.0f} {'; '.join(bytes_told)}"
        near = all(1 / ABOUT < t / (size[n] / size[OURS]) < ABOUT for n, t in slower.items())
        text += ": " + ("the bytes explain that" if near else "the bytes alone do not explain that")
    return [text + ".", f"Prefill: {_ranking(prefill)}. {_widened(prefill, decode, first)}"]


def _ranking(rows: list[Any]) -> str:
    parts = []
    for batch in dict.fromkeys(row[1] for row in rows if row[1] is not None):
        best, *others = sorted((row for row in rows if row[1] == batch), key=lambda row: -row[2])
        part = f"in a batch of {batch:.0f} {best[0]} is fastest, {best[2]:,.0f} tokens/s"
        if others:
            # Of the ratios within a round, as in the table.
            part += f", {others[0][5] / best[5]:.1f} times {others[0][0]}"
        parts.append(part)
    return "; ".join(parts)


def _widened(prefill: list[Any], decode: list[Any], batch: float) -> str:
    """Whether the engines with widened weights are nearer in prefill than in decode."""
    pairs = {
        row[0]: (row[5], other[5])
        for row, other in zip(prefill, decode, strict=True)
        if row[1] == batch and row[0].startswith("transformers")
    }
    if not pairs:
        return "Nothing with widened weights could be compared."
    told = [f"{name} {a:.1f} times against {b:.1f} in decode" for name, (a, b) in pairs.items()]
    holds = all(a < b for a, b in pairs.values())
    verdict = (
        "Widened weights cost less there" if holds else "Widened weights do not cost less there"
    )
    return f"{verdict}: in a batch of {batch:.0f} {OURS} is before {', '.join(told)}."


EXPERIMENT = Experiment(
    name="engines",
    question="How fast is the same model in other engines, on the same cores?",
    hypothesis=(
        "To decode is to read the weights, so engines that keep the file's integers are faster"
        " than those that widen them to bfloat16 or float32, by about the bytes that they save;"
        " prefill is arithmetic, so there widening costs less."
    ),
    method=(
        "The same prompts, greedy, answers of one length, in this process and with as many threads:"
        " this engine with its own kernels, this engine with llama.cpp as its runner, and"
        " transformers with its own cache on the same weights widened. Prefill is the time until"
        " all sequences have their first token, decode counts what comes while all run. Engines"
        " take turns within a round, new texts in each, after a warm-up of every shape; ratios are"
        " within a round. Of each engine the fraction of the text that is like ours is told."
    ),
    quick=Settings(prompt=64, answer=16, batches=[1, 4], repeats=2),
    full=Settings(prompt=128, answer=64, batches=[1, 4, 16], repeats=3),
    run=run,
)
