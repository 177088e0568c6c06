"""Penalties against a token-by-token formula, and repetition against transformers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from pellucid.sample.backends import NativeSampler, TorchSampler
from pellucid.sample.penalties import Penalties, TokenCounts

VOCAB = 2000


@pytest.mark.parametrize("prompt_length", [0, 900])
def test_counts_follow_a_growing_sequence(prompt_length):
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, VOCAB, prompt_length).tolist()
    generated = rng.integers(0, VOCAB, 3000).tolist()
    counts = TokenCounts(prompt, generated[:700])
    for token in generated[700:]:
        counts.add(token)
    expected = Counter(generated)
    assert sorted(counts.token_ids.tolist()) == sorted(set(prompt) | set(generated))
    pairs = zip(counts.token_ids.tolist(), counts.generated.tolist(), strict=True)
    assert all(count == expected[token] for token, count in pairs)


def test_repetition_equals_transformers_on_prompt_and_answer(sampler):
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)) * 4
    logits[1, 3] = -torch.inf
    prompt, generated = [1, 2, 3, 2, 1999], [7, 7, 3]
    ids = torch.tensor([prompt + generated])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits[1:2].clone())
    untouched = logits.clone()
    sampler.penalise(logits, [1], [1], [Penalties(TokenCounts(prompt, generated), 1.3, 0.0, 0.0)])
    torch.testing.assert_close(logits[1:2], expected)
    assert torch.equal(logits[[0, 2]], untouched[[0, 2]])


def test_all_penalties_equal_the_formula_row_by_row(sampler):
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1)) * 4
    sequences = {3: ([5, 6, 7], [6, 6, 8]), 0: ([], [1, 1, 1]), 2: ([9], [])}
    weights = [(1.2, 0.3, 0.7), (1.0, -1.5, 2.0), (0.5, 0.2, 0.1)]
    expected = logits.double().numpy().copy()
    for (row, (prompt, generated)), (repetition, frequency, presence) in zip(
        sequences.items(), weights, strict=True
    ):
        for token in set(prompt) | set(generated):
            x, count = expected[row, token], generated.count(token)
            x = x / repetition if x > 0 else x * repetition
            expected[row, token] = x - frequency * count - presence * (count > 0)
    counts = [TokenCounts(p, g) for p, g in sequences.values()]
    penalties = [Penalties(c, *w) for c, w in zip(counts, weights, strict=True)]
    sampler.penalise(logits, list(sequences), list(sequences), penalties)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_alone_gets_the_bits_it_gets_in_a_batch(sampler):
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.standard_normal((6, VOCAB)).astype(np.float32))
    penalties = [
        Penalties(TokenCounts(rng.integers(0, VOCAB, 50 * i).tolist(), [1, i]), *weights)
        for i, weights in enumerate(rng.uniform(0.5, 1.5, (6, 3)).tolist())
    ]
    together = logits.clone()
    sampler.penalise(together, range(6), range(6), penalties)
    for i in range(6):
        alone = logits[i : i + 1].clone()
        sampler.penalise(alone, [0], [i], penalties[i : i + 1])
        assert torch.equal(alone[0], together[i])


def test_both_backends_penalise_to_the_same_bits():
    native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")
    rng = np.random.default_rng(4)
    logits = torch.from_numpy((rng.standard_normal((9, VOCAB)) * 9).astype(np.float32))
    logits[:, ::7] = -torch.inf
    logits[:, 1::7] = 0.0
    penalties = [
        Penalties(TokenCounts(*rng.integers(0, VOCAB, (2, 300)).tolist()), *weights)
        for weights in [*rng.uniform(0.1, 2.0, (8, 3)).tolist(), (1.0, -0.5, 0.0)]
    ]
    expected = logits.clone()
    TorchSampler().penalise(expected, range(9), range(9), penalties)
    NativeSampler(native.ThreadTeam(3)).penalise(logits.numpy(), range(9), range(9), penalties)
    assert torch.equal(logits.view(torch.int32), expected.view(torch.int32))
