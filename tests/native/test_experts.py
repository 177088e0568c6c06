"""Mixtures of experts of every format against the reference with the same weights and rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.kernels.interface import Experts
from pellucid.kernels.reference import ReferenceOps

from .formats import FLOAT_FORMATS, QUANT_FORMATS, make_case
from .programs import Recorder, assert_close, native, run, slices

# One that is chosen by all, some by none, more rows than a block has, one row, none at all.
STEPS = (1, 2, 13, 300, 0)


class Rounded(ReferenceOps):
    """The reference, with the input of products rounded as the kernels round it."""

    def __init__(self, rounded: bool) -> None:
        self.rounded = rounded

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.rounded and len(x):
            groups = x.unflatten(-1, (-1, 32))
            scales = groups.abs().amax(-1, keepdim=True) / 127
            x = (torch.round(groups / scales) * scales).flatten(1)
        return super().linear(x, weight, bias)


class Mixture:
    """Random experts of one format, and rows for them."""

    def __init__(self, name: str, count: int = 6, top_k: int = 2, **settings: Any) -> None:
        rng = np.random.default_rng(len(name))
        k = 256 if "_k" in name else 64
        self.hidden, self.inner = k, k if name in QUANT_FORMATS else 27
        if name.startswith("bfloat16"):
            self.inner = 26
        self.packed: dict[str, list[Any]] = {}
        dense: dict[str, list[Tensor]] = {}
        sizes = {"gate": (self.inner, k), "up": (self.inner, k), "down": (k, self.inner)}
        for part, size in sizes.items():
            cases = [make_case(name, *size, rng) for _ in range(count)]
            assert all(case is not None for case in cases)
            self.packed[part] = [case.weight for case in cases]
            dense[part] = [torch.from_numpy(case.rows32) for case in cases]
        self.settings = {"top_k": top_k, "normalise": True, "activation": "silu", **settings}
        self.experts = Experts(**dense, **self.settings)
        self.count = count
        self.quantised = name in QUANT_FORMATS
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(300, self.hidden, generator=generator)
        self.shared = torch.randn(300, self.hidden, generator=generator)
        self.scores = torch.randn(300, count + 1, generator=generator)
        self.scores[100:, 0] = 4.0

    def program(self, with_shared: bool = True) -> Any:
        recorder = Recorder()
        rows = torch.cat((self.x, self.shared, self.scores), dim=1)
        x, shared, scores = slices(recorder.rows(rows), *[self.hidden] * 2, self.count + 1)
        if not with_shared:
            scores = native.Columns(scores.buffer, scores.begin, self.count)
        out = recorder.new(self.hidden)
        recorder.program.experts(
            *(out, x, scores),
            **self.packed,
            **self.settings,
            shared=shared if with_shared else None,
        )
        return recorder.finish(out)

    def expected(self, rows: slice, with_shared: bool = True) -> Tensor:
        ops = Rounded(self.quantised)
        scores = self.scores if with_shared else self.scores[:, : self.count]
        shared = self.shared[rows] if with_shared else None
        return ops.experts(self.x[rows], scores[rows], self.experts, shared)


@pytest.mark.parametrize("name", [*FLOAT_FORMATS, *QUANT_FORMATS])
def test_every_format(name: str) -> None:
    mixture = Mixture(name)
    found = run(mixture.program(), range(300), mixture.hidden)
    expected = mixture.expected(slice(300))
    if name == "bfloat16 rounded" or mixture.quantised:
        # An inner number on the boundary between two integers may fall to either side.
        assert (found - expected).norm() < 0.01 * expected.norm()
    else:
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalise": False},
        {"activation": "gelu"},
        {"activation": "gelu_tanh"},
        {"count": 1, "top_k": 1},
        {"count": 5, "top_k": 5},
        {"count": 40, "top_k": 8},
    ],
)
@pytest.mark.parametrize("with_shared", [True, False])
def test_every_kind(settings: dict[str, Any], with_shared: bool) -> None:
    mixture = Mixture("float32", **settings)
    found = run(mixture.program(with_shared), range(300), mixture.hidden)
    assert_close(found, mixture.expected(slice(300), with_shared), 1e-5)


@pytest.mark.parametrize("name", ["float32", "bfloat16 rounded", "q4_1", "q8_0", "q6_k"])
def test_rows_keep_their_bits_in_any_company(name: str) -> None:
    mixture = Mixture(name, count=9, top_k=3)
    program = mixture.program()
    whole = run(program, range(300), mixture.hidden, threads=1)
    for count in STEPS:
        for threads in (1, 2, 5):
            rows = [(11 * i + count) % 300 for i in range(count)]
            found = run(
                program, torch.tensor(rows, dtype=torch.int64), mixture.hidden, threads=threads
            )
            assert torch.equal(found, whole[rows])


def test_equal_scores_choose_the_lower_expert_and_nan_chooses_some() -> None:
    mixture = Mixture("float32", count=4, top_k=2)
    mixture.scores[0, :4] = torch.tensor([1.0, 2.0, 1.0, 1.0])
    mixture.scores[1, :4] = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
    mixture.scores[2, :4] = torch.nan
    found = run(mixture.program(), range(300), mixture.hidden)
    assert_close(found[:2], mixture.expected(slice(2)), 1e-5)
    assert found[2].isnan().all()
    assert_close(found[3:], mixture.expected(slice(3, 300)), 1e-5)


def test_outliers_of_each_expert_are_not_rounded() -> None:
    """One inner column of each expert is a hundred times the others, another one in each."""
    mixture = Mixture("q8_0", count=4, top_k=2)
    k = mixture.hidden
    for e in range(4):
        q = np.full((k, k), 128, np.uint8)
        q[np.arange(k), np.arange(k)] = 129
        scales = np.full((k, k // 32), 1.0, np.float32)
        mixture.packed["gate"][e] = mixture.packed["up"][e] = native.pack_quantised(
            q, scales, None, bits=8, group=32, zero=128
        )
        mixture.experts.gate[e] = mixture.experts.up[e] = torch.eye(k)
    mixture.x = mixture.x.sign() * 1.5  # what quantising these loses is nothing
    for row in range(300):
        mixture.x[row, row % 4] = 15.0
        mixture.scores[row, :4] = 0.0
        mixture.scores[row, row % 4] = 10.0
    exact = ReferenceOps().experts(mixture.x, mixture.scores, mixture.experts, mixture.shared)
    program = mixture.program()
    before = run(program, range(300), k)
    ids = torch.arange(40)
    zeros, out = torch.zeros(40, dtype=torch.int64), torch.empty(40, k)
    program.learn_outliers(
        *(a.numpy() for a in (ids, zeros, zeros)),
        *(np.zeros((0, 0), np.int32), np.zeros(1, np.int32), np.zeros(0, np.int32)),
        *(ids.numpy(), out.numpy()),
    )
    after = run(program, range(300), k)
    assert (after - exact).norm() < 0.2 * (before - exact).norm()


def test_what_is_refused() -> None:
    mixture = Mixture("float32")
    recorder = Recorder()
    x, scores = slices(recorder.rows(torch.zeros(4, 64 + 6)), 64, 6)
    out = recorder.new(64)

    def experts(**changes: Any) -> None:
        arguments = {"out": out, "x": x, "scores": scores, **mixture.packed, **mixture.settings}
        recorder.program.experts(**{**arguments, **changes})

    for changes, message in [
        ({"top_k": 7}, "chooses 1 to all experts, not 7"),
        ({"top_k": 0}, "chooses 1 to all experts, not 0"),
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"gate": []}, "there are 0 experts"),
        ({"up": mixture.packed["up"][:5]}, "experts differ in number"),
        ({"up": mixture.packed["down"]}, "experts differ in shape"),
        ({"down": mixture.packed["up"]}, "down does not go back"),
        ({"up": Mixture("q8_0").packed["up"]}, "experts differ in shape"),
        ({"scores": x}, "scores has 64 columns, expected 6"),
        ({"x": scores}, "x has 6 columns, expected 64"),
        ({"shared": x}, "scores has 6 columns, expected 7"),
        ({"out": x}, "written before"),
    ]:
        with pytest.raises(ValueError, match=message):
            experts(**changes)
    experts()
