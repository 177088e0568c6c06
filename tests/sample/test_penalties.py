"""Penalties against a token-by-token formula, and repetition against transformers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from pellucid.sample.penalties import TokenCounts, apply_penalties

VOCAB = 2000


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


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


def test_repetition_equals_transformers_on_prompt_and_answer():
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)) * 4
    logits[1, 3] = -torch.inf
    prompt, generated = [1, 2, 3, 2, 1999], [7, 7, 3]
    ids = torch.tensor([prompt + generated])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits[1:2].clone())
    untouched = logits.clone()
    counts = TokenCounts(prompt, generated)
    apply_penalties(logits, [1], [counts], f32(1.3), f32(0.0), f32(0.0))
    torch.testing.assert_close(logits[1:2], expected)
    assert torch.equal(logits[[0, 2]], untouched[[0, 2]])


def test_all_penalties_equal_the_formula_row_by_row():
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1)) * 4
    sequences = {3: ([5, 6, 7], [6, 6, 8]), 0: ([], [1, 1, 1]), 2: ([9], [])}
    repetition, frequency, presence = f32(1.2, 1.0, 0.5), f32(0.3, -1.5, 0.2), f32(0.7, 2.0, 0.1)
    expected = logits.double().numpy().copy()
    for i, (row, (prompt, generated)) in enumerate(sequences.items()):
        for token in set(prompt) | set(generated):
            x, count = expected[row, token], generated.count(token)
            x = x / repetition[i] if x > 0 else x * repetition[i]
            expected[row, token] = x - frequency[i] * count - presence[i] * (count > 0)
    counts = [TokenCounts(p, g) for p, g in sequences.values()]
    apply_penalties(logits, list(sequences), counts, repetition, frequency, presence)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_alone_gets_the_bits_it_gets_in_a_batch():
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.standard_normal((6, VOCAB)).astype(np.float32))
    counts = [TokenCounts(rng.integers(0, VOCAB, 50 * i), [1, i]) for i in range(6)]
    columns = [rng.uniform(0.5, 1.5, 6).astype(np.float32) for _ in range(3)]
    together = logits.clone()
    apply_penalties(together, range(6), counts, *columns)
    for i in range(6):
        alone = logits[i : i + 1].clone()
        apply_penalties(alone, [0], counts[i : i + 1], *(c[i : i + 1] for c in columns))
        assert torch.equal(alone[0], together[i])
