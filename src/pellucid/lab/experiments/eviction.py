"""What forgetting costs: a sliding window, with and without the first tokens, on a long text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.config import ModelSettings
from pellucid.errors import ConfigError
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import power_law, spread
from pellucid.lab.result import Figure, Findings, Law, Series, Table

if TYPE_CHECKING:
    from pellucid.lab.caches import NoCache
    from pellucid.lab.streaming import Reading

ALL = "all"
STRETCH = 128  # tokens whose perplexity is one point
BROKEN = 1.25  # times the perplexity of keeping all, from which on a form is said to break
FLAT = 1.25  # times the time per token when a cache was just full, up to which it is said to stay
ENGINE_WINDOW = 64  # of a tiny model that shows what the engine does with such


class Settings(msgspec.Struct, frozen=True):
    text: int  # tokens to read
    kept: list[int]  # tokens in a cache, the sinks among them
    stop: int  # tokens from one measurement of time and memory to the next
    timed: int  # tokens before a stop, each a step of its own
    sinks: int = 4
    chunk: int = 256  # tokens of all other steps
    seed: int = 0


class Form(msgspec.Struct, frozen=True):
    """One cache: how many tokens it keeps, None for all, and how many of them are the first."""

    name: str
    kept: int | None = None
    sinks: int = 0


def forms(settings: Settings) -> list[Form]:
    """Keeping all, then each size without and with sinks.

    Raises ConfigError for settings that leave nothing to measure.
    """
    if settings.text <= STRETCH or not settings.timed <= settings.stop <= settings.text:
        raise ConfigError(f"eviction: needs text > {STRETCH}, and timed <= stop <= text")
    found = [Form(ALL)]
    for kept in settings.kept:
        if kept <= settings.sinks:
            raise ConfigError(f"eviction: {kept} tokens leave no room behind {settings.sinks}")
        sinks = dict.fromkeys((0, settings.sinks))
        found += [Form(f"{kept}, {count or 'no'} sinks", kept, count) for count in sinks]
    return found


def run(settings: Settings, lab: Lab) -> Findings:
    from pellucid.lab import caches, streaming

    config = lab.subject.config
    lab.subject.check_plain_attention("eviction")
    if config.architecture == "gpt2":
        raise ConfigError("eviction: needs rotary positions; this model has learned ones")
    compared = forms(settings)
    text = lab.subject.prompt(settings.text, settings.seed)
    model = caches.load(config, lab.subject.open_weights(), settings.text)
    pace = {"chunk": settings.chunk, "stop": settings.stop, "timed": settings.timed}
    streaming.read(model, streaming.KeepAll(), text[: settings.chunk], **pace)  # warm-up
    readings: dict[str, Reading] = {}
    for form in lab.track(compared, "caches"):
        readings[form.name] = streaming.read(model, _cache(form), text, **pace)
    return _findings(settings, compared, readings, config.max_position, engine_blocks())


def _cache(form: Form) -> NoCache:
    from pellucid.lab.streaming import Evicting, KeepAll

    return KeepAll() if form.kept is None else Evicting(form.sinks, form.kept - form.sinks)


def engine_blocks() -> dict[str, int]:
    """Blocks that pellucid's engine holds for a text of a model with a sliding window."""
    from pellucid.lab.drive import greedy
    from pellucid.lab.subject import RANDOM, RANDOM_MODEL, Subject

    shape = replace(RANDOM_MODEL, sliding_window=ENGINE_WINDOW)
    subject = Subject(ModelSettings(model=RANDOM), None, shape)
    core = subject.engine(max_model_len=512, max_num_seqs=1, kv_cache_memory_mib=16)
    most = 0
    try:
        core.add(greedy("one", subject.prompt(4 * ENGINE_WINDOW, 0), 8))
        while core.has_work:
            most = max(most, core.step().stats.kv_blocks_used)
        size = core.info.block_size
    finally:
        core.runner.close()
    # A window of whole blocks may begin and end within one.
    return {"held": most, "seen": -(-ENGINE_WINDOW // size) + 1, "tokens": 4 * ENGINE_WINDOW + 8}


# ---- findings


def _findings(
    settings: Settings,
    compared: list[Form],
    readings: dict[str, Reading],
    max_position: int,
    engine: dict[str, int],
) -> Findings:
    oracle = readings[ALL]
    rows = [_row(form, readings[form.name], oracle) for form in compared]
    columns = ["kept", "KV MB at the end", "ms per token there", "least", "most"]
    columns += ["perplexity before any left", "behind that", "all, there", "times as high"]
    columns += [f"in the first {STRETCH} tokens"]
    return Findings(
        tables=[Table(f"A text of {settings.text} tokens", columns, rows)],
        figures=[
            *_perplexity(readings, max_position),
            _figure("memory", "Keys and values", "MB", settings, _megabytes(readings)),
            _figure("time", "Time per token", "milliseconds", settings, _milliseconds(readings)),
        ],
        laws=_laws(settings, readings),
        notes=_notes(engine),
        raw={name: msgspec.to_builtins(_plain(one)) for name, one in readings.items()},
        conclusion=[
            _on_perplexity(compared, rows, settings.sinks),
            _on_costs(settings, compared, readings, max_position),
        ],
    )


def _row(form: Form, one: Reading, oracle: Reading) -> list[str | float | None]:
    times = spread([seconds * 1e3 for seconds in one.seconds[-1]])
    row: list[str | float | None] = [form.name, one.kv_bytes[-1] / 1e6]
    row += [times.median, times.low, times.high]
    whole = len(one.surprises)
    kept = whole if form.kept is None else form.kept
    row.append(perplexity(one.surprises[:kept]))
    if kept >= whole:
        return [*row, None, None, None, None]
    after, other = perplexity(one.surprises[kept:]), perplexity(oracle.surprises[kept:])
    at_once = slice(kept, kept + STRETCH)
    jump = perplexity(one.surprises[at_once]) / perplexity(oracle.surprises[at_once])
    return [*row, after, other, after / other, jump]


def perplexity(surprises: Sequence[float]) -> float:
    """Of tokens whose negative log probabilities, in nats, these are."""
    return math.exp(statistics.fmean(surprises))


def _perplexities(readings: dict[str, Reading]) -> dict[str, list[float]]:
    """Of each stretch, by form."""
    return {
        name: [
            perplexity(one.surprises[end - STRETCH : end])
            for end in range(STRETCH, len(one.surprises) + 1, STRETCH)
        ]
        for name, one in readings.items()
    }


def _perplexity(readings: dict[str, Reading], max_position: int) -> list[Figure]:
    """As it is, and beside that of keeping all."""
    values = _perplexities(readings)
    beside = {
        name: [y / whole for y, whole in zip(each, values[ALL], strict=True)]
        for name, each in values.items()
    }
    figures = []
    for name, title, unit, curves in (
        ("perplexity", f"Perplexity of each {STRETCH} tokens", "perplexity", values),
        ("ratio", "Perplexity beside that of keeping all", "times as high", beside),
    ):
        ends = [float((i + 1) * STRETCH) for i in range(len(values[ALL]))]
        series = [Series(name=form, x=ends, y=y) for form, y in curves.items()]
        if name == "ratio":
            series[0].style = "dashed"  # of keeping all, which is what is compared with
        if ends[-1] > max_position:
            heights = [y for each in curves.values() for y in each]
            edge, line = [float(max_position)] * 2, [min(heights), max(heights)]
            series.append(Series(name="context of the model", x=edge, y=line, style="dashed"))
        figures.append(
            Figure(
                name=name,
                title=title,
                x_label="position",
                y_label=unit,
                series=series,
                log_y=name == "perplexity",
            )
        )
    return figures


Points = dict[str, list[tuple[float, float, float]]]  # name -> median, least and most per stop


def _megabytes(readings: dict[str, Reading]) -> Points:
    return {name: [(b / 1e6,) * 3 for b in one.kv_bytes] for name, one in readings.items()}


def _milliseconds(readings: dict[str, Reading]) -> Points:
    points: Points = {}
    for name, one in readings.items():
        spreads = [spread([seconds * 1e3 for seconds in each]) for each in one.seconds]
        points[name] = [(each.median, each.low, each.high) for each in spreads]
    return points


def _stops(settings: Settings) -> list[float]:
    return list(map(float, range(settings.stop, settings.text + 1, settings.stop)))


def _figure(name: str, title: str, unit: str, settings: Settings, points: Points) -> Figure:
    series = []
    for form, each in points.items():
        y, low, high = (list(values) for values in zip(*each, strict=True))
        if low == high:  # what does not vary has no range to draw
            low, high = [], []
        series.append(Series(name=form, x=_stops(settings), y=y, low=low, high=high))
    return Figure(name=name, title=title, x_label="position", y_label=unit, series=series)


def _laws(settings: Settings, readings: dict[str, Reading]) -> list[Law]:
    stops = _stops(settings)
    if len(stops) < 2:
        return []
    laws = []
    for name, one in readings.items():
        medians = [statistics.median(each) * 1e3 for each in one.seconds]
        laws.append(power_law(f"{name}: KV memory", stops, one.kv_bytes, of=("position", "bytes")))
        laws.append(power_law(f"{name}: time per token", stops, medians, of=("position", "ms")))
    return laws


def _plain(one: Reading) -> dict[str, Any]:
    return {"surprises": one.surprises, "seconds": one.seconds, "kv_bytes": one.kv_bytes}


def _notes(engine: dict[str, int]) -> list[str]:
    kept = engine["held"] > engine["seen"]
    does = "keeps blocks that no query can see any more" if kept else "frees what fell out"
    return [
        "All forms compute in float32 with torch. A full cache rotates all its keys anew for every"
        " token, which keeping all does not; a step of several tokens gives each of them the cache"
        " that it would have found alone.",
        f"pellucid's own engine {does}: with a model of window {ENGINE_WINDOW} it held"
        f" {engine['held']} blocks for {engine['tokens']} tokens, of which a query sees"
        f" {engine['seen']}.",
    ]


def _on_perplexity(compared: list[Form], rows: list[list[Any]], sinks: int) -> str:
    left = [(form, row) for form, row in zip(compared, rows, strict=True) if row[8] is not None]
    if not left:
        return "No token left any cache: the text is too short for the question."
    parts = [
        f"{row[8]:.2f} times with {form.name} ({row[9]:.2f} in the first {STRETCH} tokens)"
        for form, row in left
    ]
    told = f"Behind the first tokens perplexity is, beside keeping all, {', '.join(parts)}."
    without = min(row[8] for form, row in left if form.sinks == 0)
    helped = [row[8] for form, row in left if form.sinks == sinks]
    if without >= BROKEN and max(helped) < without:
        far = [form.name for form, row in left if form.sinks == sinks and row[8] >= BROKEN]
        if not far:
            return f"{told} As expected, windows alone break, and {sinks} sinks mend that."
        return (
            f"{told} As expected, windows alone break and {sinks} sinks help; but near to keeping"
            f" all, within {BROKEN:g} times, does not come {', '.join(far)}."
        )
    why = []
    if without < BROKEN:
        why.append(f"a window alone comes to {without:.2f} times")
    if max(helped) >= without:
        why.append(f"{sinks} sinks leave up to {max(helped):.2f} times")
    return f"{told} The hypothesis does not hold: {' and '.join(why)}."


def _growth(settings: Settings, compared: list[Form], readings: dict[str, Reading]) -> str:
    """How time per token changes from the first stop at which a cache is full to the last."""
    changes = []
    for form in compared:
        seconds = readings[form.name].seconds
        if form.kept is not None and form.kept < settings.stop * len(seconds):
            full = seconds[-(-form.kept // settings.stop) - 1]
            changes.append(statistics.median(seconds[-1]) / statistics.median(full))
    if not changes:
        return ""
    verdict = "stays flat" if max(changes) <= FLAT else "does not stay flat, against the hypothesis"
    return f" Once a cache is full its time per token {verdict} (up to {max(changes):.2f} times)."


def _on_costs(
    settings: Settings, compared: list[Form], readings: dict[str, Reading], max_position: int
) -> str:
    def end(one: Reading) -> tuple[float, float]:
        return one.kv_bytes[-1] / 1e6, statistics.median(one.seconds[-1]) * 1e3

    megabytes, milliseconds = end(readings[ALL])
    begin = statistics.median(readings[ALL].seconds[0]) * 1e3
    others = [(name, *end(one)) for name, one in readings.items() if name != ALL]
    listed = "; ".join(f"{name} {size:.1f} MB and {time:.1f} ms" for name, size, time in others)
    told = (
        f"After {settings.text} tokens keeping all holds {megabytes:.1f} MB and takes"
        f" {milliseconds:.1f} ms per token ({begin:.1f} ms after {settings.stop}); {listed}."
    )
    told += _growth(settings, compared, readings)
    beyond = readings[ALL].surprises[max_position:]
    if not beyond:
        return f"{told} The text ends within the model's context of {max_position} tokens."
    within = perplexity(readings[ALL].surprises[max_position - len(beyond) : max_position])
    best = min(
        (perplexity(one.surprises[max_position:]), name)
        for name, one in readings.items()
        if name != ALL
    )
    return (
        f"{told} Beyond the model's context of {max_position} tokens keeping all comes to a"
        f" perplexity of {perplexity(beyond):.1f}, {within:.1f} over as many tokens before it;"
        f" the best of the others there is {best[1]} with {best[0]:.1f}."
    )


EXPERIMENT = Experiment(
    name="eviction",
    question="What may a KV cache forget of a long text?",
    hypothesis=(
        "A window of late tokens alone breaks the model as soon as the first tokens leave it;"
        " keeping four of them, the attention sinks, brings it near to keeping all. Either way"
        " memory and time per token stay flat, also beyond the context the model was made for."
    ),
    method=(
        "One long text, scored by the same float32 model with a cache that keeps all, and with"
        " caches of fixed sizes, sinks included, that keep the latest tokens with and without the"
        " first four; keys are rotated to their places within the cache (Xiao et al. 2023). Before"
        " every stop some tokens are read one by one and timed: medians and ranges over these."
    ),
    quick=Settings(text=768, kept=[128, 384], stop=128, timed=4),
    full=Settings(text=9216, kept=[256, 1024], stop=1024, timed=16),
    run=run,
)
