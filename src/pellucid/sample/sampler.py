"""From processed logits to one token per row, without a sort and without state.

Every filter but the nucleus is a floor under the logits: top_k is the k-th largest, min_p lies
`temperature * log(min_p)` below the largest. What is left is sampled by inverse CDF from a single
uniform number. A nucleus (top_p) is never built either: a token is drawn first, then asked whether
the tokens likelier than it already fill the nucleus. If so, it and everything less likely are out
of the nucleus; the draw is repeated among the rest with the next number. That is rejection sampling
from a proposal that always contains the nucleus, hence exact, and accepts at once with a
probability of at least top_p.

Equal logits are never split by a filter: those that tie with the last one kept are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.groups import (
    GROUP,
    group_peaks,
    kth_largest,
    likeliest,
    pad_to_groups,
    top_groups,
)
from pellucid.sample.philox import uniform

_BELOW_ONE = 1.0 - 2.0**-52


@dataclass(slots=True)
class SamplingColumns:
    """How each row's token is chosen: arrays of one length, on the host."""

    temperature: NDArray[np.float32]  # 0: greedy, the likeliest token
    top_k: NDArray[np.int64]  # below 1: off
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    seed: NDArray[np.int64]
    position: NDArray[np.int64]  # where in its sequence the chosen token will stand

    def take(self, rows: NDArray[np.int64]) -> SamplingColumns:
        return SamplingColumns(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.seed[rows],
            self.position[rows],
        )


def sample(logits: Tensor, columns: SamplingColumns) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose a token per row of float32 logits [n, V], which are left as they are.

    A row's answer depends on that row alone. In this order: temperature, min_p, top_k, then top_p
    of the probability that those two left.

    Returns:
        token_ids [n], and failed [n]: rows that have no finite largest logit (NaN, infinity, or
        every token banned); their token is 0 and means nothing.
    """
    token_ids, best = likeliest(logits)
    drawn = columns.temperature.nonzero()[0]
    if len(drawn) == len(best):
        token_ids = _draw(logits, best, columns).cpu().numpy()
    elif len(drawn):
        rows = torch.from_numpy(drawn).to(logits.device)
        token_ids[drawn] = _draw(logits[rows], best[drawn], columns.take(drawn)).cpu().numpy()
    failed = ~np.isfinite(best)
    token_ids[failed] = 0
    return token_ids, failed


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`sample` where every row is greedy, as tensors that the host need not wait for."""
    token_ids = logits.argmax(-1)  # the lowest id among equals
    failed = ~torch.isfinite(logits.gather(1, token_ids[:, None])[:, 0])
    return token_ids.masked_fill_(failed, 0), failed


def _draw(logits: Tensor, largest: NDArray[np.float32], columns: SamplingColumns) -> Tensor:
    """Tokens [n] of rows that are not greedy, each with its largest logit."""
    logits = pad_to_groups(logits)
    narrow = top_groups(logits, int(columns.top_k.max())) if (columns.top_k > 0).all() else None
    if narrow is None:
        return _draw_from(logits, largest, columns)
    # What is left out would weigh nothing, so that the same token is drawn.
    groups, members = narrow
    place = _draw_from(members, largest, columns)
    return groups.gather(1, place[:, None] // GROUP)[:, 0] * GROUP + place % GROUP


def _draw_from(logits: Tensor, largest: NDArray[np.float32], columns: SamplingColumns) -> Tensor:
    """Places [n] in rows of logits [n, G * GROUP], ascending by token id."""
    best, temperature = _column(largest, logits), _column(columns.temperature, logits)
    # Probabilities but for a factor: relative to the best logit, so that no temperature can make
    # them overflow.
    weights = _exp_((logits - best[:, None]).div_(temperature[:, None]))
    floor = _floor(logits, best, temperature, columns)
    if floor is not None:
        # Comparing into a float tensor is vectorised, unlike a boolean mask and where().
        weights *= torch.ge(logits, floor[:, None], out=torch.empty_like(weights))
    token_ids = _inverse_cdf(weights, columns, draw=0)
    if (columns.top_p < 1.0).any():
        _redraw_outside_nucleus(weights, token_ids, columns)
    return token_ids


def _floor(
    logits: Tensor, best: Tensor, temperature: Tensor, columns: SamplingColumns
) -> Tensor | None:
    """The least logit [n] that min_p and top_k let through; None if no row uses them."""
    floor = None
    if (columns.min_p > 0.0).any():
        floor = best + temperature * _column(columns.min_p, logits).log()
    limited = np.flatnonzero((columns.top_k > 0) & (columns.top_k < logits.shape[1]))
    if len(limited):
        if floor is None:
            floor = torch.full_like(best, -torch.inf)
        rows = torch.from_numpy(limited).to(logits.device)
        k = torch.from_numpy(columns.top_k[limited]).to(logits.device)
        floor[rows] = floor[rows].maximum(kth_largest(logits, group_peaks(logits), rows, k))
    return floor


def _redraw_outside_nucleus(weights: Tensor, token_ids: Tensor, columns: SamplingColumns) -> None:
    """Replace, in place, the tokens that lie outside their row's nucleus.

    A token belongs to the nucleus if those strictly likelier hold less than top_p of the row.
    """
    pending = np.flatnonzero(columns.top_p < 1.0)
    rows = torch.from_numpy(pending).to(weights.device)
    candidates = weights if len(pending) == len(weights) else weights[rows]
    capacity = _column(columns.top_p[pending], weights).double() * _mass(candidates)[:, -1]
    draw = 0
    while True:
        chosen = candidates.gather(1, token_ids[rows][:, None])
        likelier = torch.gt(candidates, chosen, out=torch.empty_like(candidates)).mul_(candidates)
        mass = _mass(likelier)[:, -1]
        outside = (mass >= capacity) & (mass > 0.0)  # a tiny top_p is 0 in float32
        if not outside.any():
            return
        draw += 1
        rows, candidates, capacity = rows[outside], likelier[outside], capacity[outside]
        token_ids[rows] = _inverse_cdf(candidates, columns.take(rows.cpu().numpy()), draw)


def _inverse_cdf(weights: Tensor, columns: SamplingColumns, draw: int) -> Tensor:
    """A token per row [n], with the probability of its share of the row's weights [n, G * GROUP].

    The group is found first and then the token in it, so that nothing is summed over the whole
    vocabulary one by one; a token of weight zero is never chosen.
    """
    mass = _mass(weights)
    numbers = uniform(columns.seed, columns.position, draw)
    target = torch.from_numpy(numbers).to(weights.device)[:, None] * mass[:, -1:]
    group = torch.searchsorted(mass, target, right=True).clamp_(max=mass.shape[1] - 1)
    end = mass.gather(1, group)
    begin = torch.where(group > 0, mass.gather(1, (group - 1).clamp_(min=0)), 0.0)
    share = ((target - begin) / (end - begin)).clamp_(0.0, _BELOW_ONE)
    rows = torch.arange(len(weights), device=weights.device)
    members = weights.view(len(weights), -1, GROUP)[rows, group[:, 0]].double().cumsum(-1)
    member = torch.searchsorted(members, share * members[:, -1:], right=True)
    return (group * GROUP + member.clamp_(max=GROUP - 1))[:, 0]


def _mass(weights: Tensor) -> Tensor:
    """Running total of the groups' sums: [n, G] float64, the row's total last."""
    return weights.view(len(weights), -1, GROUP).sum(-1).double().cumsum(-1)


def _exp_(x: Tensor) -> Tensor:
    """exp, in place."""
    if x.device.type != "cpu":
        return x.exp_()
    np.exp(x.numpy(), out=x.numpy())  # takes half the time of torch's
    return x


def _column(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
