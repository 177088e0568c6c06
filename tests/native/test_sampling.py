"""The native sampler against an exact draw and against the torch reference, on hard logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.sample.backends import NativeSampler, TorchSampler
from pellucid.sample.sampler import SamplingColumns
from tests.sample.exact import check_draws, exact_draw
from tests.sample.hard_rows import VOCABS, make_batch

native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")

TEAMS = {threads: native.ThreadTeam(threads) for threads in (1, 2, 3, 4)}


def outcome(logits: np.ndarray, columns: SamplingColumns, *, threads: int) -> list[bytes]:
    """All that there is to know of each row, as bytes."""
    sampler = NativeSampler(TEAMS[threads])
    tokens, failed = sampler.sample(logits, columns, np.arange(len(logits)))
    found = sampler.logprobs(logits, tokens, 5)
    parts = (tokens, failed, found.chosen, found.rank, found.top_ids, found.top)
    return [b"".join(part[i].tobytes() for part in parts) for i in range(len(logits))]


batches = st.builds(
    lambda n, vocab, seed: make_batch(n, vocab, np.random.default_rng(seed)),
    st.integers(1, 70),
    st.sampled_from(VOCABS),
    st.integers(0, 2**32),
)
threads = st.sampled_from(list(TEAMS))


@given(batches, threads)
@settings(max_examples=40, deadline=None)
def test_tokens_are_those_of_an_exact_draw_but_for_close_calls(batch, threads):
    logits, columns = batch
    every = np.arange(len(logits))
    tokens, failed = NativeSampler(TEAMS[threads]).sample(logits, columns, every)
    check_draws(tokens, failed, logits, columns)


def test_few_calls_are_close():
    """Or the test above would show nothing."""
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((200, 5000)) * 3).astype(np.float32)
    verdicts = [exact_draw(row, 0.8, 50, 0.95, 0.01, i, 7)[1] for i, row in enumerate(logits)]
    assert sum(verdicts) <= 2


@given(batches, threads, st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_depend_on_rows_or_threads(batch, threads, seed):
    logits, columns = batch
    together = outcome(logits, columns, threads=threads)
    picked = np.random.default_rng(seed).permutation(len(logits))[: seed % 5 + 1]
    assert outcome(logits[picked], columns.take(picked), threads=seed % 4 + 1) == [
        together[i] for i in picked
    ]


@given(batches, threads, st.sampled_from([0, 1, 5, 40, 10**6]))
@settings(max_examples=25, deadline=None)
def test_logprobs_are_the_references(batch, threads, num_top):
    logits, columns = batch
    tokens, _ = NativeSampler(TEAMS[threads]).sample(logits, columns, np.arange(len(logits)))
    found = NativeSampler(TEAMS[threads]).logprobs(logits, tokens, num_top)
    expected = TorchSampler().logprobs(torch.from_numpy(logits), tokens, num_top)
    assert (found.rank == expected.rank).all()
    assert (found.top_ids == expected.top_ids).all()
    np.testing.assert_allclose(found.chosen, expected.chosen, rtol=2e-6, atol=4e-6)
    np.testing.assert_allclose(found.top, expected.top, rtol=2e-6, atol=4e-6)


def test_broken_rows_have_no_logprobs():
    logits = np.zeros((4, 200), np.float32)
    logits[0, 150], logits[1, 3], logits[2] = np.nan, np.inf, -np.inf
    found = NativeSampler(TEAMS[2]).logprobs(logits, np.zeros(4, np.int64), 3)
    assert np.isnan(found.chosen[:3]).all()
    assert np.isnan(found.top[:3]).all()
    assert found.chosen[3] == pytest.approx(-np.log(200))


def test_bad_arguments_are_refused():
    team, logits = TEAMS[1], np.zeros((2, 5), np.float32)
    _, columns = make_batch(2, 5, np.random.default_rng(0))
    fine = [columns.temperature, columns.top_k, columns.top_p, columns.min_p, columns.seed]
    out = [np.zeros(2, np.int64), np.zeros(2, bool)]
    for rows, position, outputs, message in (
        ([0, 2], columns.position, out, "rows are not all from 0 to 1"),
        ([-1, 0], columns.position, out, "rows are not all from 0 to 1"),
        ([0], columns.position, out, "rows and logits differ"),
        ([0, 1], columns.position[:1], out, "columns differ"),
        ([0, 1], columns.position, [np.zeros(3, np.int64), out[1]], "outputs and logits"),
    ):
        with pytest.raises(ValueError, match=message):
            native.sample(team, logits, np.array(rows), *fine, position, *outputs)
    with pytest.raises(ValueError, match="no columns"):
        native.sample(team, logits[:, :0].copy(), np.array([0, 1]), *fine, columns.position, *out)
    with pytest.raises(ValueError, match="token_ids are not all from 0 to 4"):
        NativeSampler(team).logprobs(logits, np.array([0, 5]), 1)
    one, ids = [np.ones(1, np.float32)], np.array([5])
    for rows, tokens, message in (
        ([0], ids, "token_ids are not all"),
        ([2], ids // 2, "not distinct rows"),
        ([0, 0], ids // 2, "not distinct rows"),
    ):
        n = len(rows)
        with pytest.raises(ValueError, match=message):
            native.penalise(team, logits, rows, [tokens] * n, one * n, [(1.0, 0.0, 0.0)] * n)
