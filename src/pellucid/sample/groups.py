"""Selection over a vocabulary without sorting it.

A row of logits is seen as groups of 128 neighbouring ids. One vectorised pass finds each group's
peak; the best k values of the row all lie in the k groups with the best peaks, so that what comes
after looks at a small part of the row.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GROUP = 128


def pad_to_groups(logits: Tensor) -> Tensor:
    """[n, V] -> [n, V rounded up to whole groups], filled with -inf; no copy where V fits."""
    missing = -logits.shape[1] % GROUP
    return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits


def group_peaks(logits: Tensor) -> Tensor:
    """Largest value of each group: [n, G * GROUP] -> [n, G]. NaN if the group holds one."""
    return logits.view(logits.shape[0], -1, GROUP).amax(-1)


def likeliest(logits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Id of each row's largest logit, the lowest id among equals, and that logit: [n] each.

    In a row with NaN that is the first NaN.
    """
    if logits.device.type == "cpu":  # numpy's argmax is vectorised, unlike torch's
        rows = logits.numpy()
        ids = rows.argmax(-1)
        return ids, rows[np.arange(len(rows)), ids]
    best = logits.argmax(-1)
    return best.cpu().numpy(), logits.gather(1, best[:, None])[:, 0].cpu().numpy()


def top_groups(logits: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The k groups of each row that hold its k largest logits and all that equal the last of these.

    [n, G * GROUP] -> group ids [n, k], ascending, and their logits [n, k * GROUP]; None if more
    than k groups may be needed, or if they are so many that nothing is gained.
    """
    peaks = group_peaks(logits)
    if k * 4 > peaks.shape[1]:
        return None
    top = peaks.topk(k + 1)
    # The k peaks are k logits, so that no group beyond them reaches the k-th largest logit if its
    # peak is below theirs. (A comparison with NaN is false.)
    if not (top.values[:, k] < top.values[:, k - 1]).all():
        return None
    groups = top.indices[:, :k].sort(dim=-1).values
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    return groups, logits.view(len(logits), -1, GROUP)[rows, groups].flatten(1)


def kth_largest(logits: Tensor, peaks: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    """The k-th largest logit, k from 1, of the chosen rows: [n, V], rows and k [m] -> [m]."""
    most = int(k.max())
    if most * 4 <= peaks.shape[1]:
        groups = peaks[rows].topk(most, sorted=False).indices
        pool = logits.view(len(logits), -1, GROUP)[rows[:, None], groups].flatten(1)
    else:
        pool = logits[rows]
    return pool.topk(most).values.gather(1, k[:, None] - 1)[:, 0]


def largest(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits, best first, the lower id first among equals: [n, k] int64.

    Unlike topk's, the order of equal values does not depend on k.
    """
    if k * 4 * GROUP > logits.shape[1]:
        return logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    logits = pad_to_groups(logits)
    peaks = group_peaks(logits)
    groups = _unpack(_pack(peaks, torch.arange(peaks.shape[1], device=logits.device)).topk(k))
    offsets = torch.arange(GROUP, device=logits.device)
    ids = (groups[..., None] * GROUP + offsets).flatten(1)
    return _unpack(_pack(logits.gather(1, ids), ids).topk(k))


def _pack(values: Tensor, ids: Tensor) -> Tensor:
    """Float32 values and int64 ids below 2^31 as int64 keys that sort by value, then lower id."""
    bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # a float's bits, in the order of signed integers
    return (ordered.to(torch.int64) << 32) | (0x7FFFFFFF - ids)


def _unpack(top: torch.return_types.topk) -> Tensor:
    return 0x7FFFFFFF - (top.values & 0x7FFFFFFF)
