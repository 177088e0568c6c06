"""What fewer bits per weight cost and bring: speed, memory, agreement with float32."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.bench.settings import Workload
from pellucid.bench.throughput import measure
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError
from pellucid.lab.drive import greedy, serve
from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import spread
from pellucid.lab.result import Figure, Findings, Series, Table

if TYPE_CHECKING:
    from pellucid.load.quantized import Scheme

ORACLE = "float32"
AS_STORED = "as in the file"
EIGHT_BITS, FOUR_BITS = ("int8", "Q8_0"), ("int4", "Q4_1", "Q4_0")
# Name -> dtype of the engine, and how float weights are rounded.
FORMS: dict[str, tuple[str, Scheme]] = {
    ORACLE: ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("bfloat16", "int8"),
    "int4": ("bfloat16", "int4"),
}


class Settings(msgspec.Struct, frozen=True):
    types: list[str]  # of GGUF, to which the weights are rounded anew
    text: int  # tokens that are scored
    window: int  # tokens that are scored together
    input_len: int
    output_len: int
    repeats: int
    seed: int = 0


def run(settings: Settings, lab: Lab) -> Findings:
    from pellucid.lab.gguf_types import TYPES

    for name in settings.types:
        if name not in TYPES:
            raise ConfigError(f"--set types: {name!r} cannot be written, only {', '.join(TYPES)}")
    raw: dict[str, Any] = {}
    names = [*FORMS, *settings.types, *([AS_STORED] if lab.subject.files else [])]
    with tempfile.TemporaryDirectory(prefix="pellucid-lab-") as folder:
        for name in lab.track(names, "formats"):
            path = Path(folder) / f"{name}.gguf"
            core = _engine(name, settings, lab, path)
            try:
                raw[name] = _measure(core, settings, lab)
            finally:
                core.runner.close()
            if path.exists():
                raw[name]["file_bytes"] = path.stat().st_size
                path.unlink()
    return _findings(raw)


def _engine(name: str, settings: Settings, lab: Lab, path: Path) -> EngineCore:
    longest = max(settings.window + 1, settings.input_len + settings.output_len)
    limits: dict[str, Any] = {"max_model_len": longest, "max_num_seqs": 1, "prefix_caching": False}
    if name == AS_STORED:
        return lab.subject.engine(**limits)
    from pellucid.lab.gguf_types import write
    from pellucid.lab.rounded import rounded

    dtype, scheme = FORMS.get(name, ("bfloat16", "none"))
    weights = rounded(lab.subject.open_weights(), lab.subject.config, scheme)
    if name not in FORMS:
        weights = write(weights, name, path)
    core = lab.subject.engine(weights, dtype=dtype, **limits)
    weights.close()
    return core


def _measure(core: EngineCore, settings: Settings, lab: Lab) -> dict[str, Any]:
    scores: list[float] = []
    for start in range(0, settings.text, settings.window):
        request = greedy("score", lab.subject.prompt(settings.window, settings.seed + start), 1)
        request.sampling = msgspec.structs.replace(request.sampling, prompt_logprobs=0)
        entries = serve(core, [request])["score"].prompt_logprobs
        scores += [entry.logprob for entry in entries if entry]
    load = Workload(
        input_len=settings.input_len,
        output_len=settings.output_len,
        num_prompts=1,
        batch_size=1,
        seed=settings.seed,
    )
    runs = [measure(core, load) for _ in range(settings.repeats)]
    return {
        "weight_bytes": core.info.weight_bytes,
        "kernels": core.info.kernels,
        "prefill": [one.prefill_tokens_per_s for one in runs],
        "decode": [one.decode_tokens_per_s for one in runs],
        "logprobs": scores,
    }


def _findings(raw: dict[str, Any]) -> Findings:
    from pellucid.lab.gguf_types import NOT_WRITTEN

    oracle = raw[ORACLE]["logprobs"]
    rows: list[list[str | float | None]] = []
    for name, one in raw.items():
        decode, prefill = spread(one["decode"]), spread(one["prefill"])
        off = [abs(a - b) for a, b in zip(one["logprobs"], oracle, strict=True)]
        surprise = -statistics.mean(one["logprobs"])
        row: list[str | float | None] = [name, decode.median, decode.low, decode.high]
        row += [prefill.median, one["weight_bytes"] / 1e6, math.exp(surprise)]
        size = one.get("file_bytes")
        rows.append([*row, statistics.mean(off), max(off), size and size / 1e6])
    columns = ["weights", "decode tokens/s", "least", "most", "prefill tokens/s", "weights MB"]
    columns += ["perplexity", "mean log prob error", "largest", "GGUF file MB"]
    kernels = sorted({one["kernels"] for one in raw.values()})
    return Findings(
        tables=[Table("Speed, memory and agreement with float32", columns, rows)],
        figures=[
            _bars("speed", "Decoding", "tokens/s (median, range)", rows, 1),
            _bars("memory", "Memory of the weights", "MB", rows, 5),
            _bars("error", "Distance of log probabilities from float32", "nats, mean", rows, 7),
        ],
        raw=raw,
        notes=[
            f"Kernels: {', '.join(kernels)}. float32 means the file's weights as floats: what the"
            " file itself lost when it was made cannot be seen here. Where it is quantised, int8"
            " and int4 round what is already rounded, and so do GGUF types.",
            NOT_WRITTEN,
        ],
        conclusion=_conclusion(rows),
    )


def _bars(name: str, title: str, unit: str, rows: list[list[Any]], column: int) -> Figure:
    values = [row[column] for row in rows]
    bars = Series(name=unit, x=[float(i) for i in range(len(rows))], y=values, style="bars")
    if column == 1:
        bars.low, bars.high = [row[2] for row in rows], [row[3] for row in rows]
    return Figure(
        name=name,
        title=title,
        x_label="weights",
        y_label=unit,
        series=[bars],
        ticks=[row[0] for row in rows],
    )


def _on_bits(rows: list[list[Any]]) -> str:
    """Whether 4 bits are farther from float32 than 8."""
    error = {row[0]: row[7] for row in rows}
    eights = max(error[name] for name in EIGHT_BITS if name in error)
    near = [name for name in FOUR_BITS if name in error and error[name] <= eights]
    if not near:
        return "As expected, 4 bits are farther than 8."
    return (
        f"Against the hypothesis {', '.join(near)} are no farther than 8 bits, as can be where the"
        " file itself was rounded to such a type, which gives back its numbers."
    )


def _conclusion(rows: list[list[Any]]) -> list[str]:
    base = rows[0]
    fast = max(rows, key=lambda row: row[1])
    others = [row for row in rows if row is not base]
    near, far = min(others, key=lambda r: r[7]), max(others, key=lambda r: r[7])
    small = min(rows, key=lambda row: row[5])
    even = [row[0] for row in rows if row is not fast and row[3] >= fast[2]]
    ranges = f"; the ranges of {', '.join(even)} reach into its own" if even else ""
    return [
        f"{fast[0]} decodes fastest, {fast[1] / base[1]:.1f} times as fast as {base[0]} in"
        f" {fast[5] / base[5]:.0%} of its memory{ranges}; {small[0]} is smallest with"
        f" {small[5]:.1f} MB.",
        f"Log probabilities are {near[7]:.3f} off on average with {near[0]}, which is nearest, and"
        f" {far[7]:.3f} with {far[0]}, which is farthest; perplexity goes from {base[6]:.2f} to"
        f" {near[6]:.2f} and {far[6]:.2f}. {_on_bits(rows)}",
    ]


EXPERIMENT = Experiment(
    name="quantization",
    question="What do fewer bits per weight bring, and what do they cost?",
    hypothesis=(
        "Decoding reads all weights for every token, so speed follows their size; 8 bits are hardly"
        " to be told from float32, 4 bits are."
    ),
    method=(
        "The file's weights as float32, bfloat16, rounded to int8 and int4 while loading, and to"
        " types of GGUF in a temporary file, and as they are stored; the log probability of every"
        " token of the same text, against float32; prefill and decode of one random prompt, after"
        " a warm-up."
    ),
    quick=Settings(
        types=["Q8_0", "Q4_0"], text=512, window=256, input_len=128, output_len=32, repeats=2
    ),
    full=Settings(
        types=["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"],
        text=8192,
        window=512,
        input_len=512,
        output_len=128,
        repeats=5,
    ),
    run=run,
)
