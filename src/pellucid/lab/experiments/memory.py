"""Where bytes go while an engine works, beside what its config says they should be."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
import numpy as np

from pellucid.config import EngineConfig
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.footprint import Footprint, Sample, Task, check_system, run_apart
from pellucid.lab.prediction import Prediction, predict
from pellucid.lab.result import Figure, Findings, Series, Table

NEAR = 0.1  # of what was predicted, within which a prediction is said to hold


class Settings(msgspec.Struct, frozen=True):
    requests: int
    prompt: tuple[int, int]  # fewest and most tokens, all as likely
    answer: tuple[int, int]
    seats: int  # requests that run at once
    context: int  # tokens that a request could have: max_model_len
    pool_mib: int
    every: int  # steps from one look at the process to the next
    seed: int = 0


def run(settings: Settings, lab: Lab) -> Findings:
    check_system()
    subject = lab.subject
    limits = {
        "device": "cpu",
        "max_num_seqs": settings.seats,
        "max_model_len": min(settings.context, subject.config.max_position),
        "kv_cache_memory_mib": settings.pool_mib,
    }
    model = msgspec.structs.asdict(subject.settings)
    config = EngineConfig.of(**{**model, "speculative": "none", **limits})
    predicted = predict(lab.subject, config)
    rng = np.random.default_rng(settings.seed)
    prompts, answers = (
        rng.integers(least, most + 1, settings.requests).tolist()
        for least, most in (settings.prompt, settings.answer)
    )
    task = Task(
        config=config,
        random=subject.files is None,
        prompts=[subject.prompt(n, settings.seed + i) for i, n in enumerate(prompts)],
        answers=answers,
        every=settings.every,
    )
    for one in lab.track([task], "engine in a process of its own"):
        found = run_apart(one)
    return _findings(settings, config, predicted, found, _file_bytes(lab))


def _file_bytes(lab: Lab) -> int | None:
    files = lab.subject.files
    if files is None:
        return None
    paths = [files.path] if files.path.is_file() else files.path.glob("*.safetensors")
    return sum(path.stat().st_size for path in paths)


# ---- after


class Shares(msgspec.Struct):
    """One sample's resident bytes, apart; they sum up to its RSS."""

    libraries: int
    weights: int
    used: int  # KV of tokens
    rounding: int  # places in held blocks that no token has
    idle: int  # KV that is backed and held by nobody
    arena: int  # activations
    rest: int  # logits, the engine's own objects, memory that loading took and malloc kept


def shares(found: Footprint, sample: Sample) -> Shares:
    token = found.block_bytes // found.block_size
    used, held = sample.tokens * token, sample.blocks * found.block_bytes
    others = found.start.rss + found.weight_bytes + found.arena_bytes + sample.kv_resident
    return Shares(
        libraries=found.start.rss,
        weights=found.weight_bytes,
        used=used,
        rounding=held - used,
        idle=sample.kv_resident - held,
        arena=found.arena_bytes,
        rest=sample.usage.rss - others,
    )


def _findings(
    settings: Settings,
    config: EngineConfig,
    predicted: Prediction,
    found: Footprint,
    file_bytes: int | None,
) -> Findings:
    busy = [one for one in found.samples if one.running == settings.seats] or found.samples
    waste = _waste(config.model.max_model_len or 0, found, busy)
    rows = _parts(settings, predicted, found, busy)
    file_mb = _megabytes(file_bytes)
    return Findings(
        tables=[
            Table(
                "Megabytes, but for the last row", ["what", "predicted", "measured", "ratio"], rows
            ),
            Table(
                f"Keys and values of {waste['running']:.0f} requests, mean",
                ["kept in", "tokens", "room for tokens", "% unused", "MB"],
                [
                    ["blocks", waste["tokens"], waste["held"], waste["lost_blocks"], waste["mb"]],
                    [
                        "one piece of max_model_len each",
                        *(waste["tokens"], waste["contiguous"], waste["lost_contiguous"]),
                        waste["contiguous"] * predicted.token / 1e6,
                    ],
                ],
            ),
        ],
        figures=[_areas(found), _unused(config.model.max_model_len or 0, found)],
        notes=[
            "Predicted from the model's shape, the types in its file and the settings, before"
            " anything was loaded; interpreter and libraries are measured in the same process"
            " before it loads, and the prediction of the whole process has them as measured. All"
            " the pool, at most 1 GiB, is backed ahead of use. Logits cannot be seen by themselves,"
            " and nothing foretells objects and what loading leaves with malloc: all else is what"
            " RSS has beyond the other rows.",
            f"Kernels: {found.kernels}. The file has {_shown(file_mb)} MB, its packed matrices"
            f" {found.weight_bytes / 1e6:.1f} MB; loading took RSS from"
            f" {found.start.rss / 1e6:.0f} to {found.loaded.rss / 1e6:.0f} MB, and what the engine"
            f" needs before its first request to {found.ready.rss / 1e6:.0f} MB, of which"
            f" {found.ready_kv / 1e6:.0f} MB were KV pool.",
        ],
        raw={
            "predicted": msgspec.to_builtins(predicted),
            "found": msgspec.to_builtins(found),
            "file_bytes": file_bytes,
        },
        conclusion=[_on_parts(rows, found), _on_waste(waste, found)],
    )


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6


def _shown(megabytes: float | None) -> str:
    return "no" if megabytes is None else f"{megabytes:.1f}"


def _parts(
    settings: Settings, predicted: Prediction, found: Footprint, busy: list[Sample]
) -> list[list[str | float | None]]:
    end = found.samples[-1]
    last = shares(found, end)
    held = statistics.fmean(one.blocks for one in busy) * found.block_bytes
    lost = _lost_per_request(found, busy)
    expected = rounding_loss(found.block_size)
    # Half of an answer is there on average.
    room = sum(settings.prompt) / 2 + sum(settings.answer) / 4 + expected
    running = statistics.fmean(one.running for one in busy)
    total = found.start.rss + predicted.weights + predicted.backed
    total += predicted.activations + predicted.logits
    pairs: list[tuple[str, float | None, float | None]] = [
        ("interpreter and libraries, RSS", None, found.start.rss),
        ("weights as packed", predicted.weights, found.weight_bytes),
        ("activations, arena", predicted.activations, found.arena_bytes or None),
        ("logits of all seats", predicted.logits, None),
        ("all else: logits, objects, what loading left, RSS", None, last.rest),
        ("KV pool, reserved", predicted.pool, found.num_blocks * found.block_bytes),
        ("KV pool, backed at the end", predicted.backed, end.kv_resident),
        ("KV blocks held, mean while all seats are taken", running * room * predicted.token, held),
        ("whole process at the end, RSS", total, end.usage.rss),
    ]
    rows: list[list[str | float | None]] = [
        [name, _megabytes(one), _megabytes(other), other / one if one and other else None]
        for name, one, other in pairs
    ]
    rows.append(["whole process at the end, PSS", None, end.usage.pss / 1e6, None])
    rows.append(["tokens lost to rounding per request", expected, lost, lost / expected])
    return rows


def rounding_loss(block_size: int) -> float:
    """Places that a request is expected to leave empty between two steps.

    0 to block_size - 1, all as likely, but that a token which will begin a block has none yet: for
    it the blocks before are full, and not yet block_size - 1 places are lost.
    """
    return sum(range(block_size - 1)) / block_size


def _lost_per_request(found: Footprint, busy: list[Sample]) -> float:
    running = [one for one in busy if one.running]
    lost = sum(one.blocks * found.block_size - one.tokens for one in running)
    return lost / max(1, sum(one.running for one in running))


def _waste(max_model_len: int, found: Footprint, busy: list[Sample]) -> dict[str, float]:
    """Means over samples; what is lost in percent of the room."""
    running = statistics.fmean(one.running for one in busy)
    tokens = statistics.fmean(one.tokens for one in busy)
    held = statistics.fmean(one.blocks * found.block_size for one in busy)
    contiguous = running * max_model_len
    return {
        "running": running,
        "tokens": tokens,
        "held": held,
        "lost_blocks": 100 * (1 - tokens / held) if held else 0.0,
        "mb": held / found.block_size * found.block_bytes / 1e6,
        "contiguous": contiguous,
        "lost_contiguous": 100 * (1 - tokens / contiguous) if contiguous else 0.0,
        "fit_blocks": found.num_blocks * found.block_size * running / held if held else 0.0,
        "fit_contiguous": found.num_blocks * found.block_size // max(1, max_model_len),
    }


def _areas(found: Footprint) -> Figure:
    names = {
        "libraries": "interpreter, libraries",
        "weights": "weights",
        "arena": "activations",
        "rest": "all else",
        "used": "KV of tokens",
        "rounding": "KV lost to rounding",
        "idle": "KV held by nobody",
    }
    parts = [shares(found, one) for one in found.samples]
    x = [one.seconds for one in found.samples]
    return Figure(
        name="resident",
        title="What the process has in memory",
        x_label="seconds since the requests came",
        y_label="MB resident",
        series=[
            Series(name=name, x=x, y=[getattr(one, part) / 1e6 for one in parts], style="area")
            for part, name in names.items()
        ],
    )


def _unused(max_model_len: int, found: Footprint) -> Figure:
    looks = [one for one in found.samples if one.blocks]
    room = {
        f"blocks of {found.block_size}": [one.blocks * found.block_size for one in looks],
        "a piece of max_model_len each": [one.running * max_model_len for one in looks],
    }
    return Figure(
        name="unused",
        title="Room for keys and values that running requests leave unused",
        x_label="seconds since the requests came",
        y_label="percent",
        series=[
            Series(
                name=name,
                x=[one.seconds for one in looks],
                y=[100 * (1 - one.tokens / r) for one, r in zip(looks, rooms, strict=True)],
            )
            for name, rooms in room.items()
        ],
    )


def _on_parts(rows: list[list[Any]], found: Footprint) -> str:
    end = found.samples[-1]
    left = found.loaded.rss - found.start.rss - found.weight_bytes
    unforeseen = found.start.rss + shares(found, end).rest
    told = (
        f"At the end the process has {end.usage.rss / 1e6:.0f} MB resident"
        f" ({end.usage.pss / 1e6:.0f} MB PSS), of which {found.weight_bytes / 1e6:.0f} MB are"
        f" weights and {end.kv_resident / 1e6:.0f} MB KV pool. The config foretells neither"
        f" {found.start.rss / 1e6:.0f} MB of interpreter and libraries nor"
        f" {shares(found, end).rest / 1e6:.0f} MB of all else, together"
        f" {unforeseen / end.usage.rss:.0%} of the process; right after loading {left / 1e6:.0f} MB"
        " were neither weights nor libraries."
    )
    off = [f"{row[0]} {row[3]:.2f} times" for row in rows if row[3] and abs(row[3] - 1) > NEAR]
    if not off:
        return f"{told} What was predicted is met within {NEAR:.0%}."
    return f"{told} The hypothesis fails by more than {NEAR:.0%} for {', '.join(off)}."


def _on_waste(waste: dict[str, float], found: Footprint) -> str:
    told = (
        f"Blocks of {found.block_size} leave {waste['lost_blocks']:.1f}% of what requests hold"
        f" unused; a piece of max_model_len for each would leave {waste['lost_contiguous']:.0f}%,"
        f" and the pool would seat {waste['fit_contiguous']:.0f} such requests instead of"
        f" {waste['fit_blocks']:.0f}."
    )
    if waste["lost_contiguous"] <= waste["lost_blocks"]:
        return f"{told} The hypothesis fails: blocks waste no less than whole contexts."
    return told


EXPERIMENT = Experiment(
    name="memory",
    question="Where do the bytes go, and could one have known?",
    hypothesis=(
        "Weights, KV pool and activations follow from the config within a tenth; interpreter,"
        " libraries and what loading leaves do not, which beside a small model is much. A request"
        " loses half a block to rounding, some percent of what it holds, where a piece of memory"
        " for the longest text there could be stays mostly empty."
    ),
    method=(
        "An engine in a process of its own serves requests of random lengths that all come at"
        " once; between steps it reads what the system counts to it (smaps_rollup), which pages of"
        " the KV pool are backed (pagemap) and who holds which block. Tables tell means over the"
        " looks at which all seats were taken. One run: sizes are no speeds, and hardly vary."
    ),
    quick=Settings(
        requests=32, prompt=(16, 256), answer=(8, 64), seats=8, context=2048, pool_mib=128, every=4
    ),
    full=Settings(
        requests=128,
        prompt=(16, 512),
        answer=(8, 256),
        seats=32,
        context=2048,
        pool_mib=512,
        every=8,
    ),
    run=run,
)
