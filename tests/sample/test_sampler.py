"""The sampler against a brute-force distribution, and that against transformers' warpers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pellucid.sample.sampler import SamplingColumns

VOCAB = 300  # not a whole number of groups


def columns(
    n: int,
    *,
    temperature: object = 1.0,
    top_k: object = 0,
    top_p: object = 1.0,
    min_p: object = 0.0,
    seed: object = 0,
    position: object = None,
) -> SamplingColumns:
    def full(value: object, dtype: type) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype), (n,)).copy()

    return SamplingColumns(
        temperature=full(temperature, np.float32),
        top_k=full(top_k, np.int64),
        top_p=full(top_p, np.float32),
        min_p=full(min_p, np.float32),
        seed=full(seed, np.int64),
        position=full(np.arange(n) if position is None else position, np.int64),
    )


def brute_force(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """The distribution that one row should be sampled from, token by token in float64."""
    scaled = logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs[probs < min_p] = 0.0  # the largest is 1 here
    if 0 < top_k < len(probs):
        probs[logits < np.sort(logits)[-top_k]] = 0.0
    probs /= probs.sum()
    likelier = np.array([probs[probs > p].sum() for p in probs])
    probs[likelier >= top_p] = 0.0
    return probs / probs.sum()


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 200, "temperature": 2.0},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 2.0},
    {"top_p": 0.01},
    {"top_p": 0.99, "temperature": 1.5},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_k": 40, "top_p": 0.8, "temperature": 1.3},
]


def settings_of(row: dict[str, float]) -> tuple[float, int, float, float]:
    return (
        row.get("temperature", 1.0),
        int(row.get("top_k", 0)),
        row.get("top_p", 1.0),
        row.get("min_p", 0.0),
    )


@pytest.fixture
def logits() -> np.ndarray:
    return (np.random.default_rng(5).standard_normal(VOCAB) * 2).astype(np.float32)


@pytest.mark.parametrize("row", SETTINGS, ids=str)
def test_brute_force_agrees_with_transformers(row, logits):
    temperature, top_k, top_p, min_p = settings_of(row)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits.copy())[None])
    expected = torch.softmax(scores.double(), -1)[0].numpy()
    actual = brute_force(logits, temperature, top_k, top_p, min_p)
    assert ((actual > 0) == (expected > 0)).all()
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("row", SETTINGS, ids=str)
def test_tokens_follow_the_distribution(row, logits, sample):
    n = 20_000
    expected = brute_force(logits, *settings_of(row))
    tokens, failed = sample(torch.from_numpy(np.tile(logits, (n, 1))), columns(n, seed=11, **row))
    counts = np.bincount(tokens, minlength=VOCAB)
    assert not failed.any()
    assert counts[expected == 0.0].sum() == 0
    # Chi-square; tokens expected fewer than 5 times are taken together.
    common = expected * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum()) * n
    observed, predicted = observed[predicted > 0], predicted[predicted > 0]
    chi_square = ((observed - predicted) ** 2 / predicted).sum()
    freedom = len(observed) - 1
    assert chi_square <= freedom + 4.5 * np.sqrt(2 * freedom) + 5


def test_different_seeds_follow_the_distribution_too(logits, sample):
    n = 20_000
    expected = brute_force(logits, 1.0, 0, 0.7, 0.0)
    rows = torch.from_numpy(np.tile(logits, (n, 1)))
    tokens, _ = sample(rows, columns(n, top_p=0.7, seed=np.arange(n), position=3))
    shares = np.bincount(tokens, minlength=VOCAB) / n
    assert np.abs(shares - expected).max() < 0.015
    assert shares[expected == 0].sum() == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_alone_gets_the_token_it_gets_in_a_batch(threads, make_sampler):
    n, vocab = 48, 5000
    rng = np.random.default_rng(2)
    logits = torch.from_numpy((rng.standard_normal((n, vocab)) * 3).astype(np.float32))
    batch = columns(
        n,
        temperature=rng.choice([0.0, 0.5, 1.0, 2.0], n),
        top_k=rng.choice([0, 1, 5, 50, 3000], n),
        top_p=rng.choice([1.0, 0.95, 0.5, 0.05], n),
        min_p=rng.choice([0.0, 0.0, 0.05], n),
        seed=rng.integers(-(2**63), 2**63 - 1, n),
        position=rng.integers(0, 8192, n),
    )
    sample = make_sampler(threads).sample
    order = rng.permutation(n)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together, _ = sample(logits, batch, np.arange(n))
        alone = [int(sample(logits[i : i + 1], batch, np.array([i]))[0][0]) for i in range(n)]
        shuffled, _ = sample(logits[order], batch, order)
    finally:
        torch.set_num_threads(before)
    assert together.tolist() == alone
    assert together[order].tolist() == shuffled.tolist()


@pytest.mark.parametrize("grid", [0.0, 0.25])
def test_a_row_with_top_k_gets_the_same_token_among_rows_without(grid, sample):
    """All rows with top_k are drawn from a part of the vocabulary; with others, from the whole."""
    n, vocab = 40, 49152
    logits = torch.randn(n + 1, vocab, generator=torch.Generator().manual_seed(5)) * 2
    if grid:  # equal logits, which lie in many groups
        logits = torch.round(logits / grid) * grid
    top_k = np.append(np.tile([1, 7, 40, 50], n // 4), 0)
    mixed = columns(n + 1, top_k=top_k, top_p=0.9, seed=np.arange(n + 1))
    together, _ = sample(logits, mixed)
    apart, _ = sample(logits[:n], mixed.take(np.arange(n)))
    assert apart.tolist() == together[:n].tolist()


def test_same_seed_and_position_give_the_same_token_and_others_do_not(logits, sample):
    rows = torch.from_numpy(np.tile(logits, (50, 1)))
    first, _ = sample(rows, columns(50, seed=1))
    again, _ = sample(rows, columns(50, seed=1))
    other, _ = sample(rows, columns(50, seed=2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert len(set(first.tolist())) > 5


@pytest.mark.parametrize("vocab", [1, 2, 127, 128, 129, 1000, 50257])
def test_greedy_is_argmax_for_any_vocabulary(vocab, sample):
    logits = torch.randn(9, vocab, generator=torch.Generator().manual_seed(vocab))
    tokens, failed = sample(logits, columns(9, temperature=0.0))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert not failed.any()


def test_greedy_takes_the_lowest_id_among_equals(sample):
    logits = torch.zeros(3, 1000)
    logits[1, [130, 127, 999]] = 4.0
    logits[2, [700, 699]] = 4.0
    assert sample(logits, columns(3, temperature=0.0))[0].tolist() == [0, 127, 699]


def test_equal_logits_at_the_edge_of_a_filter_are_all_kept(sample):
    logits = torch.zeros(4000, 256)
    logits[:, 10] = 1.0
    tokens, _ = sample(logits, columns(4000, top_k=2))
    assert len(set(tokens.tolist())) == 256
    tokens, _ = sample(logits, columns(4000, top_p=0.02))
    assert len(set(tokens.tolist())) == 256
    tokens, _ = sample(logits, columns(4000, top_p=0.005))
    assert set(tokens.tolist()) == {10}


def test_a_top_p_that_is_zero_in_float32_leaves_the_likeliest(logits, sample):
    rows = torch.from_numpy(np.tile(logits, (20, 1)))
    tokens, _ = sample(rows, columns(20, top_p=1e-60))
    assert set(tokens.tolist()) == {int(logits.argmax())}


def test_logits_are_left_as_they_are(logits, sample):
    rows = torch.from_numpy(np.tile(logits[:256], (8, 1)))
    before = rows.clone()
    sample(rows, columns(8, temperature=[0, 1] * 4, top_p=0.5, top_k=9, min_p=0.1))
    assert torch.equal(rows, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_rows_fail_and_leave_the_others_alone(temperature, logits, sample):
    rows = torch.from_numpy(np.tile(logits, (6, 1)))
    settings = columns(6, temperature=temperature, top_p=0.9, top_k=20, min_p=0.01, position=7)
    expected = int(sample(rows, settings)[0][0])
    rows[1, 17] = torch.nan
    rows[2] = torch.nan
    rows[3, 4] = torch.inf
    rows[4] = -torch.inf
    tokens, failed = sample(rows, settings)
    assert failed.tolist() == [False, True, True, True, True, False]
    assert tokens[[0, 5]].tolist() == [expected, expected]
    assert tokens[1:5].tolist() == [0] * 4  # a valid id, whatever comes after


def test_forbidden_tokens_are_never_drawn(sample):
    logits = torch.full((3000, 500), -torch.inf)
    logits[:, [3, 200, 499]] = torch.tensor([0.0, 0.5, 1.0])
    for settings in ({}, {"top_k": 400}, {"top_p": 0.99}, {"min_p": 0.01}):
        tokens, failed = sample(logits, columns(3000, **settings))
        assert set(tokens.tolist()) == {3, 200, 499}
        assert not failed.any()


def test_extreme_temperatures_keep_the_order(sample):
    logits = torch.randn(64, 2000, generator=torch.Generator().manual_seed(0)) * 8
    logits[1] *= 1e34  # divided by the temperature, they overflow
    tokens, failed = sample(logits, columns(64, temperature=1e-5))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert not failed.any()
