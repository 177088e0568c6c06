"""Who does the sampling: torch on any device, the C++ kernels on a CPU, or Triton's on a GPU.

All choose the same token from the same logits and seed, except where rounding decides: where the
number drawn falls between two tokens, or a logit or a nucleus ends at a bound, within some 1e-6 of
the row's probability. Each by itself gives a row the same bits whatever other rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.bitmask import apply_bitmask
from pellucid.sample.constraints import Constraints, apply_bans, apply_bias
from pellucid.sample.logprobs import Described, Logprobs, compute_logprobs, describe
from pellucid.sample.penalties import Penalties, apply_penalties
from pellucid.sample.sampler import SamplingColumns, greedy, sample

if TYPE_CHECKING:
    from pellucid import _native
    from pellucid.sample.triton.sampler import TritonSampler

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Logits = TypeVar("Logits", contravariant=True)


class Sampler(Protocol[Logits]):
    """What is done with float32 logits [n, V]: tensors, or arrays if the sampler is native."""

    def bias(
        self, logits: Logits, places: Sequence[int], constraints: Sequence[Constraints]
    ) -> None:
        """Add each one's biases to the row of the logits at its place; see `apply_bias`."""
        ...

    def penalise(
        self,
        logits: Logits,
        places: Sequence[int],
        rows: Sequence[int],
        penalties: Sequence[Penalties],
    ) -> None:
        """Apply each of the penalties to the row of the logits at its place.

        See `apply_penalties`. `rows` are those of `sample`, to which the next call has to be. A
        sampler may count by itself what that draws; `Penalties` that it did not have in the row
        before tell it all tokens anew.
        """
        ...

    def ban(
        self,
        logits: Logits,
        places: Sequence[int],
        constraints: Sequence[Constraints],
        banned: Sequence[Sequence[int]],
    ) -> None:
        """Leave the rows at the places what is allowed and not banned now; see `apply_bans`."""
        ...

    def forbid(self, logits: Logits, places: Sequence[int], masks: NDArray[np.uint32]) -> None:
        """Set to -inf what the masks do not allow in the rows at the places.

        See `apply_bitmask`.
        """
        ...

    def sample(
        self, logits: Logits, columns: SamplingColumns, rows: Ints
    ) -> tuple[Ints | Tensor, NDArray[np.bool_] | Tensor]:
        """A token for each row; row i of the logits is row rows[i] of the columns.

        See `sampler.sample`. The logits are left as they are. Both results are arrays, or both
        tensors on the device, which may still be computing them.
        """
        ...

    def logprobs(self, logits: Logits, token_ids: Ints, num_top: int) -> Logprobs:
        """See `compute_logprobs`."""
        ...

    def describe(self, logits: Logits, token_ids: Tensor, num_top: int) -> Described:
        """See `logprobs.describe`, of tokens that `sample` left on the device."""
        ...


class _RowByRow:
    """What few rows want, and is done for one after the other."""

    def bias(self, logits: Any, places: Sequence[int], constraints: Sequence[Constraints]) -> None:
        for place, each in zip(places, constraints, strict=True):
            apply_bias(logits, place, each)

    def ban(
        self,
        logits: Any,
        places: Sequence[int],
        constraints: Sequence[Constraints],
        banned: Sequence[Sequence[int]],
    ) -> None:
        for place, each, ids in zip(places, constraints, banned, strict=True):
            apply_bans(logits, place, each, ids)

    def forbid(self, logits: Any, places: Sequence[int], masks: NDArray[np.uint32]) -> None:
        apply_bitmask(logits, places, masks)


class TorchSampler(_RowByRow):
    """The reference, for tensors on any device. Implements `Sampler`."""

    def penalise(
        self,
        logits: Tensor,
        places: Sequence[int],
        rows: Sequence[int],
        penalties: Sequence[Penalties],
    ) -> None:
        apply_penalties(logits, places, penalties)

    def sample(
        self, logits: Tensor, columns: SamplingColumns, rows: Ints
    ) -> tuple[Ints | Tensor, NDArray[np.bool_] | Tensor]:
        taken = columns.take(rows)
        if logits.device.type != "cpu" and not taken.temperature.any():
            return greedy(logits)
        return sample(logits, taken)

    def logprobs(self, logits: Tensor, token_ids: Ints, num_top: int) -> Logprobs:
        return compute_logprobs(logits, token_ids, num_top)

    def describe(self, logits: Tensor, token_ids: Tensor, num_top: int) -> Described:
        return describe(logits, token_ids, num_top)


def gpu_sampler(num_rows: int) -> TritonSampler:
    """Triton's kernels, which hand out tensors that may still be computed; needs Triton.

    Args:
        num_rows: of the columns that rows are sampled by.
    """
    from pellucid.sample.triton.sampler import TritonSampler

    return TritonSampler(num_rows)


class NativeSampler(_RowByRow):
    """The kernels of csrc/sampling.h, for dense arrays. Implements `Sampler`."""

    def __init__(self, team: _native.ThreadTeam) -> None:
        from pellucid import _native

        self._native = _native
        self._team = team

    def penalise(
        self,
        logits: Floats,
        places: Sequence[int],
        rows: Sequence[int],
        penalties: Sequence[Penalties],
    ) -> None:
        self._native.penalise(
            self._team,
            logits,
            list(places),
            [p.counts.token_ids for p in penalties],
            [p.counts.generated for p in penalties],
            [(p.repetition, p.frequency, p.presence) for p in penalties],
        )

    def sample(
        self, logits: Floats, columns: SamplingColumns, rows: Ints
    ) -> tuple[Ints, NDArray[np.bool_]]:
        token_ids, failed = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
        self._native.sample(
            self._team,
            logits,
            rows,
            columns.temperature,
            columns.top_k,
            columns.top_p,
            columns.min_p,
            columns.seed,
            columns.position,
            token_ids,
            failed,
        )
        return token_ids, failed

    def logprobs(self, logits: Floats, token_ids: Ints, num_top: int) -> Logprobs:
        n, width = len(token_ids), min(num_top, logits.shape[1])
        found = Logprobs(
            chosen=np.empty(n, np.float32),
            rank=np.empty(n, np.int64),
            top_ids=np.empty((n, width), np.int64),
            top=np.empty((n, width), np.float32),
        )
        self._native.logprobs(
            self._team,
            logits,
            token_ids,
            found.chosen,
            found.rank,
            found.top_ids,
            found.top,
        )
        return found

    def describe(self, logits: Floats, token_ids: Tensor, num_top: int) -> Described:
        """Never called: its tokens are on the host."""
        raise NotImplementedError
