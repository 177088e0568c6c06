"""Each experiment on a tiny model at its smallest: its numbers are true, its words follow them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
import torch

from pellucid.config import ModelSettings
from pellucid.errors import ConfigError
from pellucid.lab import caches, hugging_face
from pellucid.lab.experiment import Lab
from pellucid.lab.fit import Spread
from pellucid.lab.gguf_types import TYPES, write
from pellucid.lab.result import Findings
from pellucid.lab.rounded import FloatWeights
from pellucid.lab.subject import RANDOM_MODEL, Subject

LAB = Lab(Subject(ModelSettings(model="random"), None))


def module(name: str) -> ModuleType:
    """An experiment's module; its tests are skipped where it was removed."""
    return pytest.importorskip(f"pellucid.lab.experiments.{name}", exc_type=ModuleNotFoundError)


def check(findings: Findings) -> None:
    """What holds of all findings."""
    assert msgspec.json.decode(msgspec.json.encode(findings), type=Findings) == findings
    assert 2 <= len(findings.conclusion) <= 2
    for table in findings.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    for figure in findings.figures:
        for series in figure.series:
            assert len(series.x) == len(series.y) > 0
            assert np.isfinite(series.y).all()


# ---- kv-cache


@pytest.fixture(scope="module")
def model() -> Any:
    return caches.load(RANDOM_MODEL, LAB.subject.open_weights(), 64)


@pytest.mark.parametrize("cache", caches.CACHES)
def test_every_cache_writes_the_text_of_transformers(model: Any, cache: str) -> None:
    prompt = LAB.subject.prompt(19, seed=1)
    other = hugging_face.load(RANDOM_MODEL, LAB.subject.open_weights())
    expected = other.generate(
        torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False
    )
    made = caches.generate(model, cache, prompt, 24)
    assert made.token_ids == expected[0, len(prompt) :].tolist()
    recomputed = [len(prompt) + i for i in range(24)]
    assert made.positions == (recomputed if cache == "none" else [19] + [1] * 23)


def test_kv_cache() -> None:
    experiment = module("kv_cache")
    settings = experiment.Settings(prompt=4, tokens=40, repeats=2)
    findings = experiment.run(settings, LAB)
    check(findings)
    table = findings.tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    methods = {*caches.CACHES, "transformers, off", "transformers, on", "pellucid's engine"}
    assert rows.keys() == methods
    same = {row["same text as without"] for name, row in rows.items() if "engine" not in name}
    assert same == {"yes"}
    laws = {law.name: law.exponent for law in findings.laws}
    assert laws["none: positions computed"] > 1.6
    assert laws["paged: positions computed"] < 1.05
    assert [len(runs) for runs in findings.raw.values()] == [2] * 7


def test_kv_cache_says_that_texts_differ() -> None:
    experiment = module("kv_cache")
    one = caches.Generation([1, 2, 3], [0.1] * 3, [1] * 3)
    other = caches.Generation([1, 5, 3], [0.1] * 3, [1] * 3)
    assert experiment._agreement([one, one], [1, 2, 3]) == "yes"
    assert experiment._agreement([one, other], [1, 2, 3]) == "no, from token 1"
    row = ["x", 10.0, 10.0, 10.0, 1.0, 2.0, 1.0, 1.0, 1.0, 9.0]
    rows = [["none", *row[1:], "yes"], ["paged", *row[1:], "no, from token 1"]]
    assert "not every float32 method" in experiment._conclusion(rows, 50)[1]


@pytest.mark.parametrize("changed", [{"sliding_window": 8}, {"attention_softcap": 50.0}])
@pytest.mark.parametrize("name", ["kv_cache", "eviction"])
def test_a_model_with_windows_or_caps_is_refused(name: str, changed: dict[str, float]) -> None:
    experiment = module(name)
    shape = dataclasses.replace(RANDOM_MODEL, **changed)
    lab = Lab(Subject(ModelSettings(model="random"), None, shape))
    with pytest.raises(ConfigError, match="windows or caps"):
        experiment.run(experiment.EXPERIMENT.quick, lab)


# ---- threads


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.kernels.machine_limits.SECONDS", 0.01)
    experiment = module("threads")
    settings = experiment.Settings(input_len=16, output_len=4, prompts=1, repeats=2, max_threads=2)
    findings = experiment.run(settings, LAB)
    check(findings)
    assert [row[0] for row in findings.tables[0].rows] == [
        *("prefill, 1", "prefill, 2", "decode, 1", "decode, 2")
    ]
    assert len(findings.raw["1"]["decode"]) == 2


def test_a_roofline_is_the_lower_of_two_bounds() -> None:
    experiment = module("threads")
    one = {
        "arithmetic": "int8",
        "operations_per_token": 10.0,
        "bytes_per_step": 90.0,
        "kv_bytes_per_token": 10.0,
        "limits": {"int8": 1000.0, "memory": 500.0},
    }
    assert experiment._bounds(one, 64) == {
        "prefill": (100.0, "arithmetic"),
        "decode": (5.0, "memory"),
    }
    assert experiment._bounds({**one, "limits": None}, 64) == {"prefill": None, "decode": None}


def test_the_knee_is_where_more_threads_do_not_pay() -> None:
    knee = module("threads").knee
    assert knee([1, 2, 3, 4], [10.0, 19.0, 22.0, 23.0]) == 2
    assert knee([1, 2, 3], [10.0, 19.0, 28.0]) is None
    assert knee([1, 2], [10.0, 8.0]) == 1


def test_threads_say_how_many_use_up_memory() -> None:
    experiment = module("threads")

    def model(hindered: float, count: int) -> float:
        return 10e9 * count / (1 + hindered * (count - 1))

    def told(bandwidths: list[float]) -> str:
        rates = {
            phase: [Spread(10.0 * (i + 1), 0, 0) for i in range(len(bandwidths))]
            for phase in experiment.PHASES
        }
        threads = list(range(1, len(bandwidths) + 1))
        bounds = [{"prefill": None, "decode": None}] * len(bandwidths)
        return experiment._conclusion(threads, rates, bounds, bandwidths)[1]

    two = [model(0.1, count) for count in (1, 2)]
    assert experiment.contention([1, 2], two) == pytest.approx(0.1)
    expected = next(n for n in range(2, 99) if model(0.1, n + 1) - model(0.1, n) < 5e9)
    assert expected > 2
    text = told(two)
    assert "2 threads get 18.2 GB/s, 1.82 times what one gets: memory is not used up yet" in text
    assert f"at about {expected} threads, where one more brings less than 50%" in text
    # The same law, measured as far as that: what was foretold from two is seen.
    many = [model(0.1, count) for count in range(1, expected + 2)]
    assert f"memory is used up with {expected} of them" in told(many)
    assert "nothing here tells how many" in told([10e9, 19.9e9])
    assert "memory is used up with 1 of them" in told([10e9, 10e9])
    assert "only more threads could tell" in told([10e9])


# ---- schedulers


def test_schedulers() -> None:
    experiment = module("schedulers")
    settings = experiment.Settings(requests=60, seeds=2)
    findings = experiment.run(settings, LAB)
    check(findings)
    assert findings == experiment.run(settings, LAB)  # virtual time is exact
    assert {len(fates) for runs in findings.raw.values() for fates in runs} == {
        len(experiment.record(settings, seed)) for seed in range(2)
    }


def test_fifo_serves_in_order_and_priority_does_not() -> None:
    experiment = module("schedulers")
    settings = experiment.Settings(requests=3, seeds=1, seats=1)
    arrivals = [
        experiment.Arrival("bulk", "a", 0.0, 64, 8),
        experiment.Arrival("bulk", "a", 0.001, 64, 8),
        experiment.Arrival("short", "b", 0.002, 64, 8),
    ]
    # The first prompt and 8 steps of one token, the prompt's own included.
    whole = (8 * settings.step_ms + (64 + 7) * settings.token_ms) / 1e3
    for policy, places in (("fifo", [0, 1, 2]), ("priority", [0, 2, 1])):
        fates = experiment.simulate(settings, arrivals, policy)
        for fate, arrival, place in zip(fates, arrivals, places, strict=True):
            assert fate["queue"] == pytest.approx(place * whole - arrival.time)


def test_schedulers_say_who_waits() -> None:
    conclude = module("schedulers")._conclusion
    rows = [["fifo: short", 5.0, 0, 0, 6.0, 7.0], ["priority: short", 1.0, 0, 0, 2.0, 9.0]]
    text = " ".join(conclude(rows, {"fifo": 4.0, "priority": 8.0}))
    assert text.startswith("fifo has the lowest mean latency, 4.0 s (8.0 s priority)")
    even = {"fifo": 4.0, "priority": 4.01, "shortest-first": 5.0}
    said = "fifo and priority have the lowest mean latency, 4.0 s (5.0 s shortest-first), and not"
    assert conclude(rows, even)[0].startswith(said)
    assert ", as expected" in conclude(rows, {"fifo": 4.0, "shortest-first": 3.0})[0]
    assert "wait least under priority, 1.00 s, and most under fifo" in text
    assert "9 s, a short request under priority, 1.3 times fifo's longest of 7 s" in text
    assert "nobody starves" in text
    alike = [[*rows[0][:5], 9.0], rows[1]]
    assert (
        "is 9 s, a short request under fifo and a short request under" in conclude(alike, even)[1]
    )
    rows += [["priority: bulk", 9.0, 0, 0, 12.0, 21.0], ["fair: bulk", 9.0, 0, 0, 12.0, 13.0]]
    second = conclude(rows, {"fifo": 4.0, "priority": 8.0, "fair": 4.0})[1]
    assert second.startswith("The longest anybody waits is 21 s, a bulk request under priority")
    assert second.endswith(
        "requests starve, taking 2 times for that: bulk ones under priority (3.0 times)."
    )
    assert "no other policy with fifo" in conclude(rows[:1], {"fifo": 4.0})[1]


def test_schedulers_draw_the_far_end() -> None:
    experiment = module("schedulers")
    findings = experiment.run(experiment.Settings(requests=80, seeds=2), LAB)
    _, tail = findings.figures
    for series in tail.series:
        for place, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
            runs = findings.raw[tail.ticks[int(place)]]
            queues = [[f["queue"] for f in one if f["kind"] == series.name] for one in runs]
            ends = [float(np.percentile(one, 95)) for one in queues if one]
            assert y == low == pytest.approx(np.median(ends))
            assert high == max(map(max, filter(None, queues)))


# ---- quantization


def test_quantization() -> None:
    experiment = module("quantization")
    settings = experiment.Settings(
        types=["Q8_0", "Q5_1", "Q4_0"], text=64, window=32, input_len=16, output_len=4, repeats=1
    )
    findings = experiment.run(settings, LAB)
    check(findings)
    columns, rows = findings.tables[0].columns, findings.tables[0].rows
    error = {row[0]: row[columns.index("mean log prob error")] for row in rows}
    assert error["float32"] == 0
    assert 0 < error["int8"] < error["int4"]
    assert 0 < error["Q8_0"] < error["Q5_1"] < error["Q4_0"]
    memory = {row[0]: row[columns.index("weights MB")] for row in rows}
    if findings.raw["float32"]["kernels"] == "native":  # the reference keeps all of them dense
        assert memory["Q4_0"] < memory["Q8_0"] < memory["bfloat16"]
        assert memory["int4"] < memory["int8"] < memory["bfloat16"] < memory["float32"]
    assert len(findings.raw["int8"]["logprobs"]) == 2 * 31
    sizes = {row[0]: row[-1] for row in rows}
    assert sizes["Q4_0"] < sizes["Q5_1"] < sizes["Q8_0"]
    assert sizes["int4"] is None
    assert any("cannot write" in note for note in findings.notes)


def test_quantization_refuses_types_that_cannot_be_written() -> None:
    experiment = module("quantization")
    settings = msgspec.structs.replace(experiment.EXPERIMENT.quick, types=["Q4_K"])
    with pytest.raises(ConfigError, match="'Q4_K' cannot be written, only Q8_0"):
        experiment.run(settings, LAB)


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_is_what_llama_cpps_reader_finds_in_the_file(kind: str, tmp_path: Path) -> None:
    weights = FloatWeights(LAB.subject.open_weights(), RANDOM_MODEL)
    made = write(weights, kind, tmp_path / "weights.gguf")
    assert made.names() == weights.names()
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "weights.gguf").tensors}
    for name in weights.names():
        tensor, exact = tensors[name], weights.get(name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(exact.shape)
        np.testing.assert_array_equal(made.get(name).numpy(), values)
        if exact.ndim == 1:
            assert tensor.tensor_type.name == "F32"
            assert made.integers(name) is None
            continue
        assert tensor.tensor_type.name == ("Q8_0" if "embed" in name else kind)
        groups = (exact - made.get(name)).abs().reshape(-1, 32).amax(1)
        step = exact.reshape(-1, 32).abs().amax(1) / (1 << int(kind[1]) - 1)
        assert (groups <= 1.1 * step).all()
        parts = [part.dense() for part in made.integers(name) or ()]
        np.testing.assert_allclose(np.concatenate(parts), values, rtol=1e-6, atol=1e-7)


def test_quantization_says_what_is_fastest_and_farthest() -> None:
    conclude = module("quantization")._conclusion
    rows = [
        ["float32", 10.0, 9.0, 11.0, 0, 100.0, 5.0, 0.0, 0.0],
        ["int8", 5.0, 4.0, 9.5, 0, 25.0, 5.1, 0.3, 1.0],
        ["int4", 4.0, 3.0, 5.0, 0, 15.0, 5.2, 0.1, 1.0],
    ]
    first, second = conclude(rows)
    assert first.startswith("float32 decodes fastest, 1.0 times")
    assert "the ranges of int8 reach into its own; int4 is smallest" in first
    assert "0.100 off on average with int4" in second
    assert "0.300 with int8" in second
    assert "Against the hypothesis int4 are no farther than 8 bits" in second
    rows[2][7] = 0.4
    assert conclude(rows)[1].endswith("As expected, 4 bits are farther than 8.")


# ---- prefill-decode


def test_prefill_decode() -> None:
    experiment = module("prefill_decode")
    settings = experiment.Settings(lengths=[8, 600], chunks=[8, 602], streams=2, repeats=2)
    findings = experiment.run(settings, LAB)
    check(findings)
    steps = [row[-1] for row in findings.tables[1].rows]
    # Two tokens of each step are the streams': 600 take 100 steps of 6 tokens, or one.
    assert steps == [100, 1]
    assert {len(one["alone"]) for one in findings.raw["stalls"]["8"]} == {experiment.SETTLED}


def test_prefill_decode_says_which_chunks_disturb() -> None:
    conclude = module("prefill_decode")._conclusion
    lengths = [["8", 8.0, 8.0, 8.0, 1.0, 4.0], ["32", 16.0, 16.0, 16.0, 0.5, 5.0]]
    chunks = [["16", 1.0, 30.0, 30.0, 30.0, 99.0, 6.0], ["64", 1.0, 10.0, 10.0, 10.0, 200.0, 3.0]]
    first, second = conclude(lengths, chunks)
    assert "10 times as much" in first
    assert "is 10 ms with 64 tokens per step and 30 ms with 16" in second
    assert "soonest with 16, after 99 ms instead of 200 ms with 64" in second
    assert "steps larger than 16 do not finish the prompt sooner and those larger than 16" in second
    assert "Against" not in conclude(lengths, chunks[::-1])[1]
