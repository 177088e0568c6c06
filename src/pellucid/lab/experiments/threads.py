"""How prefill and decode scale with threads, and what stops them."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from pellucid.bench.settings import Workload
from pellucid.bench.throughput import measure
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import Spread, power_law, spread
from pellucid.lab.result import Figure, Findings, Law, Series, Table

PHASES = ("prefill", "decode")
STEP_ROWS = 256  # prompt tokens of a step on a CPU, as SchedulerSettings.token_budget has it
WORTH = 0.5  # of an ideal thread's gain; below it more threads are said not to help
HINDERED = 0.02  # contention below which threads are said to read in proportion to their number


class Settings(msgspec.Struct, frozen=True):
    input_len: int
    output_len: int
    prompts: int
    repeats: int
    max_threads: int | None = None  # all physical cores
    seed: int = 0


def run(settings: Settings, lab: Lab) -> Findings:
    from pellucid.runner.device import compute_threads

    most = settings.max_threads or compute_threads()
    raw: dict[str, Any] = {}
    turns = [count for _ in range(settings.repeats) for count in range(1, most + 1)]
    for threads in lab.track(turns, "runs"):
        one = _measure(settings, lab, threads)
        before = raw.get(str(threads))
        if before:
            one |= {phase: before[phase] + one[phase] for phase in PHASES}
            one["limits"] = _better(before["limits"], one["limits"])
        raw[str(threads)] = one
    return _findings(settings, raw)


def _better(a: dict[str, float] | None, b: dict[str, float] | None) -> dict[str, float] | None:
    """The larger of each limit: what disturbed one measurement may have left the other alone."""
    return {name: max(a[name], b[name]) for name in a} if a and b else a or b


def _measure(settings: Settings, lab: Lab, threads: int) -> dict[str, Any]:
    """One run's rates, what a token costs, and this machine's limits with `threads`."""
    length = settings.input_len + settings.output_len
    core = lab.subject.engine(
        threads=threads, max_model_len=length, max_num_seqs=1, prefix_caching=False
    )
    load = Workload(
        input_len=settings.input_len,
        output_len=settings.output_len,
        num_prompts=settings.prompts,
        batch_size=1,
        seed=settings.seed,
    )
    try:
        rates = measure(core, load)
        info = core.info
    finally:
        core.runner.close()
    context = settings.input_len + settings.output_len / 2
    embedding = info.vocab_size * info.hidden_size
    matrices = info.num_parameters - (0 if lab.subject.config.tie_embeddings else embedding)
    return {
        "prefill": [rates.prefill_tokens_per_s],
        "decode": [rates.decode_tokens_per_s],
        "bytes_per_step": info.weight_bytes,
        "kv_bytes_per_token": context * info.kv_block_bytes / info.block_size,
        "operations_per_token": 2 * matrices,
        "arithmetic": _arithmetic(info.weight_bytes / info.num_parameters),
        "kernels": info.kernels,
        "limits": _limits(threads),
    }


def _arithmetic(bytes_per_parameter: float) -> str:
    """What the native kernels multiply in, by how weights are kept."""
    if bytes_per_parameter < 1.9:
        return "int8"
    return "bfloat16" if bytes_per_parameter < 3 else "float32"


def _limits(threads: int) -> dict[str, float] | None:
    """Bytes read and operations done per second; None without the compiled kernels."""
    from dataclasses import asdict

    from pellucid.kernels.machine_limits import measure_limits

    try:
        return asdict(measure_limits(threads))
    except ImportError:
        return None


def _bounds(one: dict[str, Any], input_len: int) -> dict[str, tuple[float, str] | None]:
    """The roofline: tokens/s that memory and arithmetic allow, and which of them binds.

    A decode step reads all weights and the K/V of the text for one token; a prompt's steps read
    the weights once for up to STEP_ROWS tokens. Attention's own operations are left out.
    (Williams, Waterman and Patterson 2009.)
    """
    if one["limits"] is None or not one["limits"][one["arithmetic"]]:
        return dict.fromkeys(PHASES)
    by_arithmetic = one["limits"][one["arithmetic"]] / one["operations_per_token"]
    shared = {"prefill": min(STEP_ROWS, input_len), "decode": 1}
    bounds: dict[str, tuple[float, str] | None] = {}
    for phase, rows in shared.items():
        moved = one["bytes_per_step"] / rows + one["kv_bytes_per_token"] * (rows == 1)
        by_memory = one["limits"]["memory"] / moved
        bounds[phase] = min((by_memory, "memory"), (by_arithmetic, "arithmetic"))
    return bounds


def _findings(settings: Settings, raw: dict[str, Any]) -> Findings:
    threads = [int(count) for count in raw]
    rates = {phase: [spread(one[phase]) for one in raw.values()] for phase in PHASES}
    bounds = [_bounds(one, settings.input_len) for one in raw.values()]
    rows: list[list[str | float | None]] = []
    for phase in PHASES:
        for count, rate, bound in zip(threads, rates[phase], bounds, strict=True):
            limit, why = bound[phase] or (None, "not known")
            share = rate.median / limit if limit else None
            row: list[str | float | None] = [f"{phase}, {count}", rate.median, rate.low, rate.high]
            rows.append([*row, rate.median / rates[phase][0].median, limit, share, why])
    laws = [
        power_law(f"{phase} with threads", threads, medians, of=("threads", "tokens/s"))
        for phase in PHASES
        if len(medians := [rate.median for rate in rates[phase]]) > 1
    ]
    last = next(reversed(raw.values()))
    columns = ["phase, threads", "tokens/s", "least", "most", "speed-up", "bound tokens/s"]
    columns += ["share of the bound", "bound by"]
    return Findings(
        tables=[Table("Tokens per second by threads", columns, rows), _cost_table(last)],
        figures=[_figure(phase, threads, rates[phase], bounds) for phase in PHASES],
        laws=laws,
        raw=raw,
        notes=_notes(last, laws),
        conclusion=_conclusion(threads, rates, bounds, _bandwidths(raw)),
    )


def _cost_table(one: dict[str, Any]) -> Table:
    moved = one["bytes_per_step"] + one["kv_bytes_per_token"]
    rows: list[list[str | float | None]] = [
        ["MB of weights that a step reads", one["bytes_per_step"] / 1e6],
        ["MB of keys and values that a decoded token reads", one["kv_bytes_per_token"] / 1e6],
        ["million operations per token", one["operations_per_token"] / 1e6],
        ["operations per byte when one token is decoded", one["operations_per_token"] / moved],
    ]
    if one["limits"]:
        rows.append(["GB/s that memory gives, all threads", one["limits"]["memory"] / 1e9])
        peak = one["limits"][one["arithmetic"]]
        rows.append([f"billion {one['arithmetic']} operations/s, all threads", peak / 1e9])
        rows.append(["operations per byte of the machine", peak / one["limits"]["memory"]])
    return Table("What a token costs, and what the machine gives", ["what", "value"], rows)


def _figure(phase: str, threads: list[int], rates: list[Spread], bounds: list[Any]) -> Figure:
    x = list(map(float, threads))
    first = rates[0].median
    series = [
        Series(
            name="measured",
            x=x,
            y=[rate.median for rate in rates],
            low=[rate.low for rate in rates],
            high=[rate.high for rate in rates],
        ),
        Series(name="in proportion", x=x, y=[first * n / x[0] for n in x], style="dashed"),
    ]
    if all(bound[phase] for bound in bounds):
        limits = [bound[phase][0] for bound in bounds]
        series.append(Series(name="roofline", x=x, y=limits, style="dashed"))
    title = f"{phase.capitalize()} by threads"
    return Figure(
        name=phase,
        title=title,
        x_label="threads",
        y_label="tokens/s (median, range)",
        series=series,
    )


def _notes(one: dict[str, Any], laws: list[Law]) -> list[str]:
    notes = [f"Kernels: {one['kernels']}."]
    if any(law.points < 3 for law in laws):
        notes.append("Two points lie on any law: the exponents are a way to say the speed-up.")
    if one["limits"] is None:
        notes.append("The machine's limits are measured by the compiled kernels, which are absent.")
    return notes


def knee(threads: list[int], medians: list[float]) -> int | None:
    """The number of threads after which one more brings less than WORTH of an ideal one."""
    for before, after, count in zip(medians, medians[1:], threads, strict=False):
        if after - before < WORTH * medians[0]:
            return count
    return None


def _bandwidths(raw: dict[str, Any]) -> list[float]:
    """Bytes per second that each number of threads reads; empty if that is not known."""
    limits = [one["limits"] for one in raw.values()]
    return [one["memory"] for one in limits] if all(limits) else []


def contention(threads: list[int], bandwidths: list[float]) -> float:
    """How much threads hinder each other at reading: s of B(n) = n B(1) / (1 + s (n - 1)).

    By least squares over n B(1) / B(n); 0 is not at all, 1 is that more threads read no more than
    one. The form is Amdahl's law. `threads` begin with 1.
    """
    beyond = [count - 1 for count in threads]
    lost = [n * bandwidths[0] / one - 1 for n, one in zip(threads, bandwidths, strict=True)]
    explained = sum(more * loss for more, loss in zip(beyond, lost, strict=True))
    return explained / sum(more * more for more in beyond)


def _on_memory(threads: list[int], bandwidths: list[float]) -> str:
    """Whether these threads use up what memory gives, and how many would."""
    if len(threads) == 1:
        return "Whether one thread uses up what memory gives, only more threads could tell."
    told = (
        f"Reading and nothing else, {threads[-1]} threads get {bandwidths[-1] / 1e9:.1f} GB/s,"
        f" {bandwidths[-1] / bandwidths[0]:.2f} times what one gets"
    )
    if used_up := knee(threads, bandwidths):
        return f"{told}: memory is used up with {used_up} of them, and more hardly read more."
    hindered = contention(threads, bandwidths)
    if hindered < HINDERED:
        return f"{told}: memory is not used up, and nothing here tells how many threads it takes."

    def model(count: int) -> float:
        return count / (1 + hindered * (count - 1))

    expected = next(n for n in itertools.count(threads[-1]) if model(n + 1) - model(n) < WORTH)
    return (
        f"{told}: memory is not used up yet. If every further thread hinders the others as much as"
        f" these do, it will be at about {expected} threads, where one more brings less than"
        f" {WORTH:.0%} of what the first did."
    )


def _conclusion(
    threads: list[int],
    rates: dict[str, list[Spread]],
    bounds: list[dict[str, Any]],
    bandwidths: list[float],
) -> list[str]:
    sentences = []
    for phase in PHASES:
        medians = [rate.median for rate in rates[phase]]
        gain = f"{medians[-1] / medians[0]:.2f} times as fast with {threads[-1]} threads as with 1"
        stop = knee(threads, medians)
        bend = f", with a knee at {stop}" if stop else ", without a knee so far"
        if len(threads) == 1:
            gain, bend = f"{medians[0]:.0f} tokens/s with 1 thread", ""
        bound = bounds[-1][phase]
        why = ""
        if bound:
            why = f"; it reaches {medians[-1] / bound[0]:.0%} of what {bound[1]} allows"
        sentences.append(f"{phase.capitalize()} is {gain}{bend}{why}.")
    if bandwidths:
        sentences[-1] += f" {_on_memory(threads, bandwidths)}"
    return sentences


EXPERIMENT = Experiment(
    name="threads",
    question="How do prefill and decode scale with threads, and what stops them?",
    hypothesis=(
        "Prefill multiplies many rows with each weight and scales with cores; decode reads every"
        " weight for one row and stops scaling where memory bandwidth is used up."
    ),
    method=(
        "One prompt at a time through the engine, with each number of threads from 1 to all"
        " physical cores in turn; prefill and decode steps timed apart after a warm-up. Bandwidth"
        " and products per second are measured with the same threads in the same run."
    ),
    quick=Settings(input_len=192, output_len=32, prompts=2, repeats=2),
    full=Settings(input_len=512, output_len=128, prompts=4, repeats=5),
    run=run,
)
