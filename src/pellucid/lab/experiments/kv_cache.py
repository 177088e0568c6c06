"""What a KV cache saves, and what its form costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.lab.experiment import Experiment, Lab
from pellucid.lab.fit import power_law, slope, spread
from pellucid.lab.result import Figure, Findings, Law, Series, Table

if TYPE_CHECKING:
    from pellucid.lab.caches import Generation

ANSWER = 50  # tokens whose total is told
SQUARE = 1.8  # an exponent from which on a curve is said to be one
FITTED_FROM = 8  # tokens

Generate = Callable[[int], "Generation"]


class Settings(msgspec.Struct, frozen=True):
    prompt: int
    tokens: int
    repeats: int
    seed: int = 0


def run(settings: Settings, lab: Lab) -> Findings:
    lab.subject.check_plain_attention("kv-cache")
    methods, notes, close = _methods(settings, lab)
    runs: dict[str, list[Generation]] = {name: [] for name in methods}
    try:
        for generate in methods.values():
            generate(min(4, settings.tokens))  # warm-up
        rounds = list(itertools.product(range(settings.repeats), methods))
        for _, name in lab.track(rounds, "generations"):
            runs[name].append(methods[name](settings.tokens))
    finally:
        close()
    return _findings(settings, runs, notes)


def _methods(
    settings: Settings, lab: Lab
) -> tuple[dict[str, Generate], list[str], Callable[[], None]]:
    """What to compare, why some are missing, and what to call at the end."""
    import torch

    from pellucid.lab import caches, hugging_face
    from pellucid.lab.torch_threads import on_threads
    from pellucid.runner.device import compute_threads

    subject, longest = lab.subject, settings.prompt + settings.tokens
    prompt, threads = subject.prompt(settings.prompt, settings.seed), compute_threads()
    model = caches.load(subject.config, subject.open_weights(), longest)

    def ours(cache: str) -> Generate:
        return on_threads(threads, lambda count: caches.generate(model, cache, prompt, count))

    methods = {name: ours(name) for name in caches.CACHES}
    notes = []
    if problem := hugging_face.obstacle(subject.config):
        notes.append(problem)
    else:
        other = hugging_face.load(subject.config, subject.open_weights())

        def theirs(use_cache: bool) -> Generate:
            return on_threads(
                threads,
                lambda count: hugging_face.generate(other, prompt, count, use_cache=use_cache),
            )

        methods |= {"transformers, off": theirs(False), "transformers, on": theirs(True)}
    core = subject.engine(max_model_len=longest, max_num_seqs=1, prefix_caching=False)
    methods["pellucid's engine"] = on_threads(
        torch.get_num_threads(),  # as this engine wants it
        lambda count: _engine(core, prompt, count),
    )
    notes.append(
        "All but pellucid's engine compute in float32 with torch; the engine runs its"
        f" {core.info.kernels} kernels on the weights as they are served"
        f" ({core.info.weight_bytes / 1e6:.0f} MB), so its text may part from the others'."
    )
    return methods, notes, core.runner.close


def _engine(core: Any, prompt: list[int], count: int) -> Generation:
    from pellucid.lab.caches import Generation
    from pellucid.lab.drive import greedy, serve

    one = serve(core, [greedy("one", prompt, count)])["one"]
    seconds = [end - begin for begin, end in itertools.pairwise([0.0, *one.token_times])]
    return Generation(one.token_ids, seconds, [len(prompt)] + [1] * (count - 1))


def _findings(settings: Settings, runs: dict[str, list[Generation]], notes: list[str]) -> Findings:
    lengths = list(range(1, settings.tokens + 1))
    answer = min(ANSWER, settings.tokens)
    rows: list[list[str | float | None]] = []
    latency, total, laws = [], [], []
    oracle = runs["none"][0].token_ids
    for name, made in runs.items():
        each = [spread([run.seconds[i] * 1e3 for run in made]) for i in range(settings.tokens)]
        medians = [one.median for one in each]
        sums = list(itertools.accumulate(medians))
        positions = [float(settings.prompt + i) for i in range(settings.tokens)]
        low, high = [one.low for one in each], [one.high for one in each]
        latency.append(
            Series(name=name, x=positions[1:], y=medians[1:], low=low[1:], high=high[1:])
        )
        total.append(Series(name=name, x=list(map(float, lengths)), y=[s / 1e3 for s in sums]))
        law = _law(f"{name}: time of an answer", sums, "ms")
        work = list(itertools.accumulate(made[0].positions))
        laws += [law, _law(f"{name}: positions computed", work, "positions")]
        fixed, rise = slope(positions[1:], medians[1:])
        rates = spread([(settings.tokens - 1) / sum(run.seconds[1:]) for run in made])
        row: list[str | float | None] = [name, rates.median, rates.low, rates.high, medians[0]]
        row += [sums[answer - 1] / 1e3, fixed, rise * 1e3, law.exponent]
        rows.append([*row, float(sum(made[0].positions)), _agreement(made, oracle)])
    columns = ["cache", "tokens/s", "least", "most", "first token ms", f"{answer} tokens s"]
    columns += ["ms at position 0 (line)", "µs more per position", "exponent of time of an answer"]
    columns += ["positions computed", "same text as without"]
    return Findings(
        tables=[Table("Greedy generation of one sequence", columns, rows)],
        figures=[
            Figure(
                name="latency",
                title="Time per token as the text grows",
                x_label="position",
                y_label="milliseconds (median, range)",
                series=latency,
            ),
            Figure(
                name="total",
                title="Time of the whole answer",
                x_label="tokens generated",
                y_label="seconds",
                series=total,
                log_x=True,
                log_y=True,
            ),
        ],
        laws=laws,
        notes=notes,
        raw={name: [_plain(run) for run in made] for name, made in runs.items()},
        conclusion=_conclusion(rows, answer),
    )


def _law(name: str, totals: Sequence[float], unit: str) -> Law:
    """Of totals after 1, 2, ... tokens; the first few are mostly the prompt."""
    lengths = range(FITTED_FROM, len(totals) + 1)
    return power_law(name, lengths, totals[FITTED_FROM - 1 :], of=("tokens", unit))


def _agreement(made: list[Generation], oracle: list[int]) -> str:
    """Whether every repeat has the oracle's tokens, or the first token that differs in any."""
    parted = [
        next(i for i, (a, b) in enumerate(zip(run.token_ids, oracle, strict=True)) if a != b)
        for run in made
        if run.token_ids != oracle
    ]
    return f"no, from token {min(parted)}" if parted else "yes"


def _plain(run: Generation) -> dict[str, Any]:
    return {"token_ids": run.token_ids, "seconds": run.seconds, "positions": run.positions}


def _conclusion(rows: list[list[Any]], answer: int) -> list[str]:
    table = {row[0]: row for row in rows}
    none, paged = table["none"], table["paged"]
    kept = [row for name, row in table.items() if name in ("concatenated", "contiguous", "paged")]
    best = max(kept, key=lambda row: row[1])
    first = (
        f"A token takes {none[7]:,.0f} µs longer per position without a cache and {paged[7]:.1f} µs"
        f" with blocks; {answer} tokens take {none[5]:.2f} s without and {paged[5]:.2f} s with,"
        f" {none[5] / paged[5]:.1f} times as long, and the time of an answer grows with the power"
        f" {none[8]:.2f} of its length against {paged[8]:.2f}."
    )
    if none[8] < SQUARE and none[7] > 0:
        first += (
            f" That is not the square yet: {none[6]:.0f} ms of each token's time do not depend on"
            f" the text, as much as {none[6] / none[7] * 1e3:.0f} positions cost."
        )
    texts = {row[-1] for row in [*kept, *(table[n] for n in table if n.startswith("transf"))]}
    same = "every float32 method wrote the same text"
    if texts != {"yes"}:
        same = "not every float32 method wrote the same text"
    spread_of_forms = min(row[1] for row in kept) / best[1]
    second = (
        f"Of the forms of a cache {best[0]} is fastest and the slowest reaches"
        f" {spread_of_forms:.0%} of it; {same}"
    )
    if "transformers, on" in table:
        second += f"; paged is {paged[1] / table['transformers, on'][1]:.2f} times as fast as the"
        second += " cache of transformers"
    return [first, second + "."]


EXPERIMENT = Experiment(
    name="kv-cache",
    question="What does a KV cache save, and does its form matter?",
    hypothesis=(
        "Without a cache each token costs as much as the text before it is long, so an answer costs"
        " the square of its length; with any cache a token costs nearly the same anywhere."
    ),
    method=(
        "Greedy continuation of one prompt by the same float32 model code and attention, keeping K"
        " and V nowhere, in a tensor that is copied longer, in one preallocated tensor, and in"
        " shuffled blocks of 16; beside transformers with its cache off and on, and pellucid's"
        " engine. Rounds take turns, after a warm-up; medians over rounds."
    ),
    quick=Settings(prompt=4, tokens=64, repeats=1),
    full=Settings(prompt=4, tokens=256, repeats=3),
    run=run,
)
