"""Windows and attention sinks: against attention written out token by token, and their words."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.errors import ConfigError
from pellucid.kernels.interface import KVLayer
from pellucid.lab import caches, streaming
from pellucid.lab.subject import RANDOM_MODEL
from pellucid.layers.rope import RopeTable
from tests.lab.test_experiments import LAB, check, module

HEADS, GROUPS, SIZE = 4, 2, 8


def rotated(x: Tensor, place: int) -> Tensor:
    """One head [D] turned by complex numbers: pair i stands at i and i + D / 2."""
    half = SIZE // 2
    angles = [place * 10_000.0 ** (-2 * i / SIZE) for i in range(half)]
    turned = torch.complex(x[:half], x[half:]) * torch.tensor(
        [complex(math.cos(a), math.sin(a)) for a in angles]
    )
    return torch.cat((turned.real, turned.imag))


def brute_force(q: Tensor, k: Tensor, v: Tensor, sinks: int, window: int) -> Tensor:
    """[T, H, D]: every token looks at a list of what is kept, numbered from 0."""
    out = torch.zeros_like(q)
    for token in range(len(q)):
        kept = [i for i in range(token + 1) if i < sinks or i > token - window]
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            query = rotated(q[token, head], len(kept) - 1)
            scores = [
                float(query @ rotated(k[i, group], place)) * 0.5 for place, i in enumerate(kept)
            ]
            weights = torch.tensor(scores).softmax(0)
            out[token, head] = sum(w * v[i, group] for w, i in zip(weights, kept, strict=True))
    return out


@settings(max_examples=30, deadline=None)
@given(
    sinks=st.integers(0, 5),
    window=st.integers(1, 9),
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_eviction_is_attention_over_the_kept_positions(
    sinks: int, window: int, chunks: list[int]
) -> None:
    length = sum(chunks)
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(length, HEADS, SIZE, generator=generator)
    k = torch.randn(length, GROUPS, SIZE, generator=generator)
    v = torch.randn(length, GROUPS, SIZE, generator=generator)
    shape: dict[str, Any] = {n: getattr(RANDOM_MODEL, n) for n in RANDOM_MODEL.__dataclass_fields__}
    config = type(RANDOM_MODEL)(**{**shape, "num_kv_heads": GROUPS, "head_dim": SIZE})
    table = RopeTable.build(config, sinks + window + max(chunks), caches.CPU)

    cache = streaming.Evicting(sinks, window)
    kv: KVLayer = cache.room(config, length)
    found, begin = [], 0
    for count in chunks:
        rows = slice(begin, begin + count)
        inputs = caches.step_inputs(begin, begin + count)
        query = cache.rope_and_write_kv(q[rows], k[rows], v[rows], table.cos, table.sin, inputs, kv)
        found.append(cache.paged_attention(query, kv, inputs, scale=0.5))
        begin += count
        assert len(kv.k) == len(kv.v) <= sinks + window - 1 + count
    torch.testing.assert_close(torch.cat(found), brute_force(q, k, v, sinks, window))


@pytest.fixture(scope="module")
def model() -> Any:
    return caches.load(RANDOM_MODEL, LAB.subject.open_weights(), 96)


PACE = {"chunk": 7, "stop": 32, "timed": 3}


@pytest.mark.parametrize(("sinks", "window"), [(0, 96), (4, 92)])
def test_a_window_as_long_as_the_text_changes_no_bit(model: Any, sinks: int, window: int) -> None:
    text = LAB.subject.prompt(96, seed=2)
    whole = streaming.read(model, streaming.KeepAll(), text, **PACE)
    other = streaming.read(model, streaming.Evicting(sinks, window), text, **PACE)
    assert other.surprises == whole.surprises
    assert other.kv_bytes == whole.kv_bytes
    shorter = streaming.read(model, streaming.Evicting(sinks, window - 2), text, **PACE)
    assert shorter.surprises[:90] == whole.surprises[:90]
    assert shorter.surprises != whole.surprises


def test_keeping_all_scores_as_transformers_does(model: Any) -> None:
    from pellucid.lab import hugging_face

    pytest.importorskip("transformers")
    text = LAB.subject.prompt(96, seed=3)
    other = hugging_face.load(RANDOM_MODEL, LAB.subject.open_weights())
    with torch.no_grad():
        logits = other(input_ids=torch.tensor([text])).logits[0, :-1]
    expected = -logits.log_softmax(-1)[torch.arange(95), torch.tensor(text[1:])]
    found = streaming.read(model, streaming.KeepAll(), text, **PACE).surprises
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)


def test_what_is_evicted_does_not_depend_on_the_steps(model: Any) -> None:
    text = LAB.subject.prompt(96, seed=4)
    readings = [
        streaming.read(model, streaming.Evicting(4, 12), text, chunk=chunk, stop=32, timed=timed)
        for chunk, timed in ((1, 1), (5, 2), (96, 1))
    ]
    for other in readings[1:]:
        torch.testing.assert_close(
            torch.tensor(other.surprises), torch.tensor(readings[0].surprises)
        )
        assert other.kv_bytes == readings[0].kv_bytes  # of 16 tokens, whatever came before


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 50), st.data())
def test_steps_cover_the_text_once(length: int, chunk: int, stop: int, data: st.DataObject) -> None:
    timed = data.draw(st.integers(1, stop))
    found = list(streaming.steps(length, chunk, stop, timed))
    assert [token for begin, end in found for token in range(begin, end)] == list(range(length))
    single = {begin for begin, end in found if end == begin + 1}
    for last in range(stop, length + 1, stop):
        assert set(range(last - timed, last)) <= single
    assert all(end - begin <= chunk for begin, end in found)


# ---- the experiment


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return module("eviction")


def test_eviction(experiment: ModuleType) -> None:
    tiny = experiment.Settings(text=300, kept=[32, 512], stop=100, timed=2, chunk=32)
    findings = experiment.run(tiny, LAB)
    check(findings)
    rows = {row[0]: row for row in findings.tables[0].rows}
    per_token = 4 * 2 * 4 * 2 * 32  # float32, K and V, of 4 layers, 2 heads of 32
    assert rows["all"][1] == 300 * per_token / 1e6
    assert rows["32, no sinks"][1] == rows["32, 4 sinks"][1] == 32 * per_token / 1e6
    assert rows["512, 4 sinks"][5] == rows["all"][5]
    assert rows["512, 4 sinks"][6:] == [None] * 4
    assert [len(one) for one in findings.raw["all"]["seconds"]] == [2, 2, 2]
    laws = {law.name: law.exponent for law in findings.laws}
    assert laws["all: KV memory"] == pytest.approx(1)
    assert laws["32, 4 sinks: KV memory"] == pytest.approx(0)
    # The engine holds the blocks of the whole text, 264 tokens, not of the window.
    assert "held 17 blocks for 264 tokens, of which a query sees 5" in findings.notes[1]


def test_eviction_says_when_the_hypothesis_fails(experiment: ModuleType) -> None:
    compared = [experiment.Form("64, no sinks", 64, 0), experiment.Form("64, 4 sinks", 64, 4)]

    def words(without: float, with_sinks: float) -> str:
        rows = [["", *[0.0] * 7, ratio, ratio] for ratio in (without, with_sinks)]
        text: str = experiment._on_perplexity(compared, rows, 4)
        return text

    assert words(9.0, 1.1).endswith("As expected, windows alone break, and 4 sinks mend that.")
    assert words(9.0, 1.4).endswith("within 1.25 times, does not come 64, 4 sinks.")
    assert words(1.1, 1.0).endswith("does not hold: a window alone comes to 1.10 times.")
    assert words(9.0, 9.5).endswith("does not hold: 4 sinks leave up to 9.50 times.")


def test_eviction_tells_what_lies_beyond_the_context(experiment: ModuleType) -> None:
    reading = streaming.Reading
    readings = {
        "all": reading([0.0] * 6 + [math.log(8.0)] * 2, [[0.1], [0.2]], [10, 20]),
        "64, 4 sinks": reading([math.log(2.0)] * 8, [[0.1], [0.1]], [5, 5]),
    }
    tiny = experiment.Settings(text=8, kept=[3], stop=4, timed=1)
    compared = [experiment.Form("all"), experiment.Form("64, 4 sinks", 3)]
    text = experiment._on_costs(tiny, compared, readings, 6)
    assert "stays flat (up to 1.00 times)" in text
    assert "perplexity of 8.0, 1.0 over as many tokens before it" in text
    assert text.endswith("64, 4 sinks with 2.0.")
    readings["64, 4 sinks"].seconds[-1] = [0.3]
    text = experiment._on_costs(tiny, compared, readings, 8)
    assert "does not stay flat, against the hypothesis (up to 3.00 times)" in text
    assert "ends within" in text


def test_eviction_refuses_a_cache_of_sinks_alone(experiment: ModuleType) -> None:
    with pytest.raises(ConfigError, match="no room behind 4"):
        experiment.forms(experiment.Settings(text=300, kept=[4], stop=100, timed=2))


@pytest.mark.parametrize("change", [{"text": 128}, {"stop": 301}, {"timed": 101}])
def test_eviction_refuses_what_it_could_not_measure(
    experiment: ModuleType, change: dict[str, int]
) -> None:
    given_settings = {"text": 300, "kept": [32], "stop": 100, "timed": 2} | change
    with pytest.raises(ConfigError, match="timed <= stop <= text"):
        experiment.run(experiment.Settings(**given_settings), LAB)
