"""The draw of one token in float64, token by token, and how close a call it was."""

from __future__ import annotations

import numpy as np
import torch

from pellucid.sample.backends import TorchSampler
from pellucid.sample.philox import uniform
from pellucid.sample.sampler import SamplingColumns

# What float32 may move a decision by, as a share of a row's probability.
CLOSE = 2e-6


def exact_draw(
    logits: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> tuple[int, bool]:
    """The token of float32 logits [V] whose largest is finite, and whether a decision was so close
    that rounding may turn it."""
    best = logits.max()
    if temperature == 0.0:
        return int(logits.argmax()), False
    weights, close = _weights(logits, best, np.float32(temperature)), False
    if 0 < top_k < len(logits):
        weights[logits < np.sort(logits)[-top_k]] = 0.0
    if min_p > 0.0:
        floor = float(best) + float(np.float32(temperature)) * np.log(float(np.float32(min_p)))
        close |= bool((np.abs(logits - floor) <= 1e-6 * max(1.0, abs(floor))).any())
        weights[logits < floor] = 0.0
    capacity = float(np.float32(top_p)) * weights.sum()
    for draw in range(10_000):
        total = weights.cumsum()
        number = uniform(np.array([seed]), np.array([position]), draw)[0]
        token = int(np.searchsorted(total, number * total[-1], side="right"))
        edges = np.abs(total[max(token - 1, 0) : token + 1] - number * total[-1])
        close |= bool(edges.min() <= CLOSE * total[-1]) and bool((weights > 0).sum() > 1)
        if top_p >= 1.0:
            break
        chosen = weights[token]
        near = np.abs(weights - chosen) <= 1e-6 * chosen
        alike = weights[near & (weights != chosen)].sum()
        likelier = np.where(weights > chosen, weights, 0.0)
        close |= bool(abs(likelier.sum() - capacity) <= alike + CLOSE * total[-1])
        if likelier.sum() < capacity or not likelier.any():
            break
        close |= bool(alike)
        weights = likelier
    return token, close


def _weights(logits: np.ndarray, best: np.float32, temperature: np.float32) -> np.ndarray:
    with np.errstate(over="ignore"):  # far below the best
        return np.exp(((logits - best) / temperature).astype(np.float64))


def check_draws(
    tokens: np.ndarray, failed: np.ndarray, logits: np.ndarray, columns: SamplingColumns
) -> None:
    """None failed, and each token is the exact draw's and the reference's but for close calls."""
    reference, _ = TorchSampler().sample(torch.from_numpy(logits), columns, np.arange(len(logits)))
    assert not failed.any()
    for i, row in enumerate(logits):
        token, close = exact_draw(
            row,
            *(float(columns.temperature[i]), int(columns.top_k[i]), float(columns.top_p[i])),
            *(float(columns.min_p[i]), int(columns.seed[i]), int(columns.position[i])),
        )
        if close:
            assert row[tokens[i]] > -np.inf
        else:
            assert (tokens[i], reference[i]) == (token, token)
