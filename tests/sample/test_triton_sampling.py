"""Triton's sampler against an exact draw and the torch reference, on hard logits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device import DEVICE
from tests.sample.exact import check_draws
from tests.sample.hard_rows import make_batch
from tests.triton_interpreter import interpreting

from pellucid.sample.backends import TorchSampler
from pellucid.sample.bitmask import apply_bitmask
from pellucid.sample.penalties import Penalties, TokenCounts
from pellucid.sample.philox import uniform
from pellucid.sample.sampler import SamplingColumns

NUM_ROWS = 4
VOCABS = (1, 2, 127, 1003, 4096, 4097, 9000)  # parts have 4,096 ids


@pytest.fixture(scope="module")
def sampler() -> Iterator[Any]:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    with interpreting():
        from pellucid.sample.triton.sampler import TritonSampler

        yield TritonSampler(NUM_ROWS)


def placed(logits: np.ndarray | torch.Tensor) -> torch.Tensor:
    """On the device under test."""
    return torch.as_tensor(logits).to(DEVICE)


def tokens_of(
    sampler: Any, logits: np.ndarray | torch.Tensor, columns: SamplingColumns
) -> tuple[np.ndarray, np.ndarray]:
    tokens, failed = sampler.sample(placed(logits), columns, np.arange(len(logits)))
    assert tokens.dtype == torch.int64
    return tokens.cpu().numpy(), failed.cpu().numpy()


def outcome(sampler: Any, logits: np.ndarray, columns: SamplingColumns) -> list[bytes]:
    """All that there is to know of each row, as bytes."""
    rows = placed(logits)
    tokens, failed = tokens_of(sampler, logits, columns)
    found = sampler.logprobs(rows, tokens, 5)
    parts = (tokens, failed, found.chosen, found.rank, found.top_ids, found.top)
    return [b"".join(part[i].tobytes() for part in parts) for i in range(len(logits))]


batches = st.builds(
    lambda n, vocab, seed: make_batch(n, vocab, np.random.default_rng(seed)),
    st.integers(1, 8),
    st.sampled_from(VOCABS),
    st.integers(0, 2**32),
)


@given(batches)
@settings(max_examples=30, deadline=None)
def test_tokens_are_those_of_an_exact_draw_but_for_close_calls(sampler, batch):
    logits, columns = batch
    tokens, failed = tokens_of(sampler, logits, columns)
    check_draws(tokens, failed, logits, columns)


@given(batches, st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_a_row_does_not_depend_on_its_company(sampler, batch, seed):
    """Nor on which stages others need."""
    logits, columns = batch
    together = outcome(sampler, logits, columns)
    picked = np.random.default_rng(seed).permutation(len(logits))[: seed % 3 + 1]
    alone = outcome(sampler, logits[picked], columns.take(picked))
    assert alone == [together[i] for i in picked]


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("num_top", [0, 7])
def test_logprobs_are_the_references(sampler, vocab, num_top):
    logits, _ = make_batch(6, vocab, np.random.default_rng(vocab))
    logits[0, -1] = -np.inf if vocab > 1 else 0.0
    chosen = np.array([0, vocab - 1] * 3)
    found = sampler.logprobs(placed(logits), chosen, num_top)
    expected = TorchSampler().logprobs(torch.from_numpy(logits), chosen, num_top)
    assert (found.rank == expected.rank).all()
    assert (found.top_ids == expected.top_ids).all()
    np.testing.assert_allclose(found.chosen, expected.chosen, rtol=2e-6, atol=4e-6)
    np.testing.assert_allclose(found.top, expected.top, rtol=2e-6, atol=4e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy tells of them
def test_broken_rows_fail_and_leave_the_others_alone(sampler):
    logits, _ = make_batch(6, 5000, np.random.default_rng(1))
    logits[5] = logits[0]
    logits[1, 4999], logits[2], logits[3, 4], logits[4] = np.nan, np.nan, np.inf, -np.inf
    every = np.full(6, 0.9, np.float32)
    same = np.zeros(6, np.int64)
    columns = SamplingColumns(every, same + 20, every, every * 0, same + 3, same + 7)
    tokens, failed = tokens_of(sampler, logits, columns)
    assert failed.tolist() == [False, True, True, True, True, False]
    assert tokens[0] == tokens[5]
    assert tokens[1:5].tolist() == [0] * 4
    found = sampler.logprobs(placed(logits), tokens, 2)
    assert np.isnan(found.chosen[1:5]).all()


def test_numbers_are_those_of_the_host(sampler):
    """Inverted: over equal weights the token says which interval the number lies in."""
    n, vocab = 16, 4096
    rng = np.random.default_rng(4)
    seeds, positions = rng.integers(-(2**63), 2**63 - 1, n), rng.integers(0, 2**40, n)
    ones, zeros = np.ones(n, np.float32), np.zeros(n, np.int64)
    columns = SamplingColumns(ones, zeros, ones, ones * 0, seeds, positions)
    tokens, _ = tokens_of(sampler, torch.zeros(n, vocab), columns)
    assert tokens.tolist() == np.floor(uniform(seeds, positions) * vocab).tolist()


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_only_what_changed_of_how_rows_sample_is_sent(sampler, data):
    """Over equal weights a token tells seed and position."""
    kept, sent = type(sampler)(NUM_ROWS), []
    table = sys.modules["pellucid.sample.triton.table"]
    count, logits = 5, torch.zeros(5, 4096)
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.int64)
    columns = SamplingColumns(ones, zeros, ones, ones * 0, zeros.copy(), zeros + 2**32 - 2)
    at = dict.fromkeys(range(count))  # where the device expects each row to go on
    rows = np.empty(0, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        to_device = table.to_device
        patch.setattr(table, "to_device", lambda v, d: sent.append(v) or to_device(v, d))
        for _ in range(5):
            again = len(rows) > 0 and data.draw(st.booleans())
            if not again:
                every = data.draw(st.permutations(range(count)))
                rows = np.array(every[: data.draw(st.integers(1, count))])
            for row in data.draw(st.sets(st.sampled_from(range(count)), max_size=1)):
                columns.seed[row] += 1
            moved = {row for row in rows if at[row] != (columns.seed[row], columns.position[row])}
            sent.clear()
            tokens, _ = kept.sample(placed(logits[: len(rows)]), columns, rows)
            drawn = np.floor(uniform(columns.seed[rows], columns.position[rows]) * 4096)
            assert tokens.tolist() == drawn.tolist()
            lines = [array for array in sent if array.ndim == 2]
            assert sum(map(len, lines)) == len(moved), "lines of rows that go on are not sent"
            assert len(sent) - len(lines) <= (not again), "nor which rows they are"
            columns.position[rows] += 1
            at |= {row: (columns.seed[row], columns.position[row]) for row in rows.tolist()}


def test_penalties_have_the_bits_of_the_reference(sampler):
    rng = np.random.default_rng(4)
    logits = placed((rng.standard_normal((9, 2000)) * 9).astype(np.float32))
    logits[:, ::7] = -torch.inf
    logits[:, 1::7] = 0.0
    penalties = [
        Penalties(TokenCounts(*rng.integers(0, 2000, (2, size)).tolist()), *weights)
        for size, weights in zip(
            (0, 1, 300, 1500), rng.uniform(0.1, 2.0, (4, 3)).tolist(), strict=True
        )
    ]
    expected = logits.clone()
    TorchSampler().penalise(expected, (7, 1, 4, 0), range(4), penalties)
    type(sampler)(NUM_ROWS).penalise(logits, (7, 1, 4, 0), (3, 2, 0, 1), penalties)
    assert torch.equal(logits.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("vocab", [31, 1025])
def test_masks_forbid_what_the_reference_forbids(sampler, vocab):
    rng = np.random.default_rng(5)
    masks = rng.integers(0, 2**32, (2, -(-vocab // 32)), dtype=np.uint32)
    logits = placed(torch.randn(4, vocab, generator=torch.Generator().manual_seed(0)))
    expected = logits.clone()
    apply_bitmask(expected, [3, 1], masks)
    sampler.forbid(logits, [3, 1], masks)
    assert torch.equal(logits, expected)


def test_what_is_no_logits_is_refused(sampler):
    for wrong in (torch.zeros(2, 5).half(), torch.zeros(5), torch.zeros(4, 10)[:, ::2]):
        with pytest.raises(ValueError, match="dense float32"):
            sampler.penalise(wrong, [0], [0], [Penalties(TokenCounts([], [1]), 1.0, 0.0, 1.0)])
