"""The reference's mixture of experts against a loop over tokens in float64, and its promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.kernels.interface import Experts
from pellucid.kernels.reference import ReferenceOps, choose_experts

OPS = ReferenceOps()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def random_experts(count: int, hidden: int, inner: int, **settings: object) -> Experts:
    values = {"activation": "silu", "top_k": 2, "normalise": True, **settings}
    return Experts(
        gate=[random(inner, hidden, seed=10 + e) / hidden**0.5 for e in range(count)],
        up=[random(inner, hidden, seed=100 + e) / hidden**0.5 for e in range(count)],
        down=[random(hidden, inner, seed=1000 + e) / inner**0.5 for e in range(count)],
        **values,
    )


def one_row(x: Tensor, scores: list[float], experts: Experts) -> Tensor:
    """x [hidden] float64 through the experts that `scores` choose, by the book."""
    chosen = sorted(range(len(scores)), key=lambda e: (-scores[e], e))[: experts.top_k]
    among = chosen if experts.normalise else range(len(scores))
    whole = sum(math.exp(scores[e]) for e in among)
    act = {"silu": F.silu, "gelu": F.gelu}[experts.activation]
    total = torch.zeros_like(x)
    for e in chosen:
        inner = act(experts.gate[e].double() @ x) * (experts.up[e].double() @ x)
        total += math.exp(scores[e]) / whole * (experts.down[e].double() @ inner)
    return total


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalise": False, "top_k": 3, "activation": "gelu"},
        {"top_k": 1},
        {"top_k": 7, "normalise": False},
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_rows_are_what_their_experts_make_of_them(rows: int, settings: dict[str, object]) -> None:
    experts = random_experts(7, 24, 20, **settings)
    x, scores, shared = random(rows, 24), 2 * random(rows, 8), random(rows, 24, seed=1)
    scores[: rows // 2, 2] += 100  # one expert that many rows choose
    scores[:, 5] -= 100  # one that none does, if it can be helped
    expected = torch.zeros(rows, 24, dtype=torch.float64)
    for row, values in enumerate(scores[:, :7].tolist()):
        expected[row] = one_row(x[row].double(), values, experts)
    found = OPS.experts(x, scores[:, :7], experts)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    expected += torch.sigmoid(scores[:, 7:].double()) * shared
    found = OPS.experts(x, scores, experts, shared)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_row_has_its_bits_in_any_company(threads: int) -> None:
    experts = random_experts(6, 64, 48)
    x, scores, shared = random(150, 64), 3 * random(150, 7), random(150, 64, seed=1)
    together = OPS.experts(x, scores, experts, shared)
    for start, count in [(0, 1), (149, 1), (7, 2), (30, 17), (3, 140)]:
        rows = slice(start, start + count)
        alone = OPS.experts(x[rows], scores[rows], experts, shared[rows])
        assert torch.equal(alone, together[rows])


SCORES = st.lists(
    st.lists(st.sampled_from([-90.0, -1.0, 0.0, 0.5, 0.5000001, 90.0]), min_size=5, max_size=5),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(1, 5), st.booleans())
def test_what_is_chosen(rows: list[list[float]], top_k: int, normalise: bool) -> None:
    ids, shares = choose_experts(torch.tensor(rows), top_k, normalise)
    for scores, chosen, of_each in zip(rows, ids.tolist(), shares.tolist(), strict=True):
        assert chosen == sorted(range(5), key=lambda e: (-scores[e], e))[:top_k]
        assert all(share >= 0 for share in of_each)
        assert of_each == sorted(of_each, reverse=True)
        whole = sum(of_each)
        assert whole == pytest.approx(1.0) if normalise or top_k == 5 else whole < 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(SCORES, st.integers(1, 5))
def test_no_row_is_lost_or_seen_twice(rows: list[list[float]], top_k: int) -> None:
    """Experts that all give back what they get: a row comes out times the sum of its shares."""
    ones, ramp = torch.ones(2, 4), torch.arange(1.0, len(rows) + 1)
    same = Experts([ones] * 5, [ones] * 5, [torch.ones(4, 2)] * 5, "silu", top_k, normalise=True)
    x = ramp.unsqueeze(1).expand(-1, 4)
    inner = F.silu(4 * ramp) * 4 * ramp
    found = OPS.experts(x, torch.tensor(rows), same)
    torch.testing.assert_close(found, (2 * inner).unsqueeze(1).expand(-1, 4))
