"""Logits and settings that are hard to sample from, for every backend."""

from __future__ import annotations

import numpy as np

from pellucid.sample.sampler import SamplingColumns

VOCABS = (1, 2, 15, 127, 128, 129, 300, 1003, 5000)


def make_batch(n: int, vocab: int, rng: np.random.Generator) -> tuple[np.ndarray, SamplingColumns]:
    """Rows of every kind of logits with every mixture of parameters."""
    logits = rng.standard_normal((n, vocab)) * rng.choice([0.01, 1.0, 4.0, 30.0], (n, 1))
    kinds = rng.integers(0, 8, n)
    for row, kind in zip(logits, kinds, strict=True):
        if kind == 0:  # ties, zeros of both signs among them
            row[:] = np.round(row * 2) / 2
        elif kind == 1:
            row[:] = row[0]
        elif kind == 2:  # few are allowed
            row[rng.random(vocab) < 0.95] = -np.inf
        elif kind == 3:
            row[rng.integers(vocab)] = 80.0
        elif kind == 4:
            row *= 1e37 / max(1.0, np.abs(row).max())
    logits[np.isneginf(logits).all(-1), 0] = 1.0
    columns = SamplingColumns(
        temperature=rng.choice([0.0, 1e-5, 0.3, 1.0, 2.0], n, p=[0.1, 0.1, 0.2, 0.3, 0.3]),
        top_k=rng.choice([0, -1, 1, 2, 7, 60, vocab // 2, vocab, 10**9], n),
        top_p=rng.choice([1.0, 1.0, 0.999, 0.9, 0.3, 1e-3, 1e-9], n),
        min_p=rng.choice([0.0, 0.0, 1e-6, 0.03, 0.9, 1.0], n),
        seed=rng.integers(-(2**63), 2**63 - 1, n),
        position=rng.integers(0, 2**33, n),
    )
    columns.temperature = columns.temperature.astype(np.float32)
    columns.top_p = columns.top_p.astype(np.float32)
    columns.min_p = columns.min_p.astype(np.float32)
    columns.top_k = columns.top_k.astype(np.int64)
    return logits.astype(np.float32), columns
