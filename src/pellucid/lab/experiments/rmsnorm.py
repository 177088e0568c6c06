"""RMSNorm by kernel and number of tokens, beside a copy of as many bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import Spread, power_law, spread
from pellucid.lab.result import Figure, Findings, Series, Table

COPY = "copy"
TORCH, FUSED, NATIVE, TRITON = "torch, op by op", "torch, one call", "native", "triton"
SECONDS = 0.15  # per measurement, three runs at least; the best one counts
GPU_RUNS = 20  # between two synchronisations
NEAR = 0.7  # of the copy's speed, from which on a norm is said to be near it
EPS = 1e-6

Seconds = Callable[[int, int], float]  # of one norm of so many tokens, and columns
Samples = dict[str, dict[int, list[float]]]  # kernel -> tokens -> seconds of each repeat


class Settings(msgspec.Struct, frozen=True):
    tokens: list[int]
    large: int  # columns, beside the model's own
    repeats: int


def run(settings: Settings, lab: Lab) -> Findings:
    from pellucid.runner.device import compute_threads

    kernels = _kernels(compute_threads())
    sizes = list(dict.fromkeys((lab.subject.config.hidden_size, settings.large)))
    found: dict[int, Samples] = {
        size: {name: {tokens: [] for tokens in settings.tokens} for name in kernels}
        for size in sizes
    }
    rounds = [
        (size, tokens, name)
        for _ in range(settings.repeats)
        for size in sizes
        for tokens in settings.tokens
        for name in kernels
    ]
    for size, tokens, name in lab.track(rounds, "norms"):
        found[size][name][tokens].append(kernels[name](tokens, size))
    return _findings(found, _item_bytes(), _about())


# ---- measuring


def _on_gpu() -> bool:
    from pellucid.kernels.gpu import default_device

    return default_device().type == "cuda"


def _item_bytes() -> int:
    """Of one number: activations are float32 on a CPU, half as wide on a GPU."""
    return 2 if _on_gpu() else 4


def _about() -> list[tuple[str, str | None]]:
    """Every kernel and why it is not measured here, or None."""
    from pellucid.kernels.dispatch import describe
    from pellucid.kernels.gpu import default_device

    device = default_device()
    backends = {one.name: one for one in describe(device)}
    why: list[tuple[str, str | None]] = [(TORCH, None), (FUSED, None)]
    for name in (NATIVE, TRITON):
        why.append((name, None if backends[name].available else backends[name].reason))
    if device.type == "cpu" and why[-1][1] is None:
        why[-1] = (TRITON, "no GPU; in Triton's interpreter a kernel's speed means nothing")
    return why


def _kernels(threads: int) -> dict[str, Seconds]:
    """What runs here, and a copy."""
    import torch.nn.functional as F

    from pellucid.kernels.reference import ReferenceOps

    reference = ReferenceOps()
    there = {name for name, obstacle in _about() if obstacle is None}
    kernels: dict[str, Seconds] = {
        COPY: _torch(lambda x, weight, out: out.copy_(x)),
        TORCH: _torch(lambda x, weight, out: reference.rms_norm(x, weight, EPS)),
        FUSED: _torch(lambda x, weight, out: F.rms_norm(x, weight.shape, weight.to(x.dtype), EPS)),
    }
    if NATIVE in there:
        from pellucid.kernels.measure import Bench

        bench = Bench(threads)
        kernels[NATIVE] = lambda tokens, size: bench.rms_norm(size, tokens).seconds
    if TRITON in there:
        from pellucid.kernels.triton.norm import rms_norm

        kernels[TRITON] = _torch(lambda x, weight, out: rms_norm(x, weight, EPS))
    return kernels


def _torch(norm: Callable[[Any, Any, Any], Any]) -> Seconds:
    """The best run of `norm`, which is given rows, a weight and memory like the rows."""
    import torch

    from pellucid.kernels.gpu import default_device, synchronize

    device = default_device()
    dtype = torch.bfloat16 if _on_gpu() else torch.float32
    calls = GPU_RUNS if _on_gpu() else 1

    @torch.inference_mode()
    def seconds(tokens: int, size: int) -> float:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(tokens, size, generator=generator, device=device, dtype=dtype)
        weight, out = torch.ones(size, device=device), torch.empty_like(x)
        best, runs, end = math.inf, 0, time.perf_counter() + SECONDS
        while runs < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            for _ in range(calls):
                norm(x, weight, out)
            synchronize(device)
            best = min(best, (time.perf_counter() - begin) / calls)
            runs += 1
        return best

    return seconds


# ---- findings


def crossings(tokens: Sequence[int], a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Where the faster of two curves changes, as tokens, by straight lines over log-log."""
    ratios = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    found = []
    for i in range(len(ratios) - 1):
        before, after = ratios[i], ratios[i + 1]
        if before * after < 0:
            share = before / (before - after)
            found.append(math.exp(_between(math.log(tokens[i]), math.log(tokens[i + 1]), share)))
    return found


def _between(begin: float, end: float, share: float) -> float:
    return begin + share * (end - begin)


def worst(medians: dict[str, list[float]]) -> dict[str, float]:
    """How many times the fastest kernel's time each takes where it is farthest from it."""
    fastest = [min(times) for times in zip(*medians.values(), strict=True)]
    return {
        name: max(time / best for time, best in zip(times, fastest, strict=True))
        for name, times in medians.items()
    }


def _findings(
    found: dict[int, Samples], item_bytes: int, about: list[tuple[str, str | None]]
) -> Findings:
    tables, figures, laws = [], [], []
    for size, samples in found.items():
        moved = {tokens: 2 * tokens * size * item_bytes for tokens in samples[COPY]}
        rates = {
            name: {
                tokens: spread([moved[tokens] / seconds / 1e9 for seconds in repeats])
                for tokens, repeats in each.items()
            }
            for name, each in samples.items()
        }
        tables.append(_table(size, rates))
        figures.append(_figure(size, rates))
        if len(moved) > 1:
            laws += [
                power_law(f"{name}: rows of {size}", list(moved), times, of=("tokens", "seconds"))
                for name, times in _medians(samples).items()
            ]
    there: list[list[str | float | None]] = [[name, why or "measured"] for name, why in about]
    tables.append(Table("Kernels", ["kernel", "here"], there))
    return Findings(
        tables=tables,
        figures=figures,
        laws=laws,
        notes=[
            "A norm that found and left its rows as a copy does would be as fast as the copy of as"
            " many bytes. Up to the size of the caches both exceed what memory gives.",
            "Inside a model the native and the Triton norm add the residual stream in the same"
            " pass; here they norm alone. What is told of the native kernel is its instruction's"
            " time: the call of a program is shared by all instructions of a step.",
        ],
        raw={
            str(size): {
                name: {str(tokens): repeats for tokens, repeats in each.items()}
                for name, each in samples.items()
            }
            for size, samples in found.items()
        },
        conclusion=_conclusion(found, item_bytes),
    )


def _medians(samples: Samples) -> dict[str, list[float]]:
    """Seconds of each kernel, but the copy, by tokens."""
    return {
        name: [spread(repeats).median for repeats in each.values()]
        for name, each in samples.items()
        if name != COPY
    }


def _table(size: int, rates: dict[str, dict[int, Spread]]) -> Table:
    rows: list[list[str | float | None]] = []
    names = [name for name in rates if name != COPY]
    for tokens, copied in rates[COPY].items():
        here = {name: rates[name][tokens] for name in names}
        best = max(here, key=lambda name: here[name].median)
        row: list[str | float | None] = [f"{tokens}", _ranged(copied)]
        row += [_ranged(rate) for rate in here.values()]
        rows.append([*row, best, here[best].median / copied.median])
    columns = ["tokens", COPY, *names, "fastest", "its share of the copy"]
    return Table(f"Rows of {size}: GB/s read and written, median (range)", columns, rows)


def _ranged(rate: Spread) -> str:
    return f"{rate.median:.3g} ({rate.low:.3g} to {rate.high:.3g})"


def _figure(size: int, rates: dict[str, dict[int, Spread]]) -> Figure:
    series = []
    for name, each in rates.items():
        one = Series(
            name=name,
            x=list(map(float, each)),
            y=[rate.median for rate in each.values()],
            low=[rate.low for rate in each.values()],
            high=[rate.high for rate in each.values()],
        )
        one.style = "dashed" if name == COPY else "line"
        series.append(one)
    return Figure(
        name=f"rows-{size}",
        title=f"RMSNorm of rows of {size}",
        x_label="tokens",
        y_label="GB/s read and written (median, range)",
        series=series,
        log_x=True,
        log_y=True,
    )


def _conclusion(found: dict[int, Samples], item_bytes: int) -> list[str]:
    speeds, switches = [], []
    for size, samples in found.items():
        medians = _medians(samples)
        tokens = list(samples[COPY])
        last = {name: times[-1] for name, times in medians.items()}
        best = min(last, key=lambda name: last[name])
        copied = spread(samples[COPY][tokens[-1]]).median
        rate = 2 * tokens[-1] * size * item_bytes / last[best] / 1e9
        speeds.append(
            f"{tokens[-1]} rows of {size} are fastest with {best}, {rate:.1f} GB/s or"
            f" {copied / last[best]:.0%} of the copy, and take"
            f" {last[TORCH] / last[best]:.1f} times as long with {TORCH}"
        )
        switches.append(_switch(size, tokens, medians))
    rule = (
        "Dispatch may look at the columns of a row alone, or a token would depend on its company;"
        " what loses least at its worst is, by columns: "
    )
    return [
        f"{'; '.join(speeds)}. {_verdict(found)}",
        f"{' '.join(switches)} {rule}{_rule(found)}.",
    ]


def _verdict(found: dict[int, Samples]) -> str:
    """What of the hypothesis holds nowhere, or not everywhere."""
    fails = []
    for size, samples in found.items():
        medians = _medians(samples)
        copied = spread(list(samples[COPY].values())[-1]).median
        share = copied / min(times[-1] for times in medians.values())
        if share < NEAR:
            fails.append(f"with rows of {size} the best reaches {share:.0%} of the copy only")
        if len(set(_fastest(medians))) == 1:
            fails.append(f"with rows of {size} one kernel is fastest for few tokens and for many")
    return f"The hypothesis fails: {', '.join(fails)}." if fails else "The hypothesis holds."


def _fastest(medians: dict[str, list[float]]) -> list[str]:
    """The fastest kernel at each number of tokens."""
    places = range(len(next(iter(medians.values()))))
    return [min(medians, key=lambda name: medians[name][place]) for place in places]


def _switch(size: int, tokens: list[int], medians: dict[str, list[float]]) -> str:
    """Which kernel is fastest from where to where."""
    fastest = _fastest(medians)
    told = f"With rows of {size} {fastest[0]} is fastest for {tokens[0]}"
    for place in range(1, len(tokens)):
        before, after = fastest[place - 1], fastest[place]
        if before != after:
            near = tokens[place - 1 : place + 1]
            pair = [medians[name][place - 1 : place + 1] for name in (before, after)]
            told += f", {after} from about {crossings(near, *pair)[0]:.0f} tokens on"
    if len(set(fastest)) == 1:
        told += f" to {tokens[-1]} tokens"
    return told + "."


def _rule(found: dict[int, Samples]) -> str:
    parts = []
    for size, samples in found.items():
        losses = worst(_medians(samples))
        best = min(losses, key=lambda name: losses[name])
        others = ", ".join(f"{name} {loss:.1f}" for name, loss in losses.items() if name != best)
        parts.append(f"{best} for {size} (at most {losses[best]:.1f} times the fastest; {others})")
    return ", ".join(parts)


EXPERIMENT = Experiment(
    name="rmsnorm",
    question="How near is a norm to a copy, and which kernel should compute it?",
    hypothesis=(
        "A norm reads and writes each number once, so a good one is as fast as a copy. Computed op"
        " by op it goes over memory several times and stays far below; for few tokens what a call"
        " costs decides, so one kernel is fastest there and another for many."
    ),
    method=(
        "RMSNorm of random rows, of the model's hidden size and a large one, by torch op by op and"
        " in one call, the native kernels and, on a GPU, Triton's; a copy of the same rows beside"
        " each. The best run within 0.15 s each time; kernels take turns; median and range over"
        " repeats."
    ),
    quick=Settings(tokens=[1, 16, 256, 4096], large=4096, repeats=2),
    full=Settings(tokens=[1, 4, 16, 64, 256, 1024, 4096, 16384], large=4096, repeats=5),
    run=run,
)
