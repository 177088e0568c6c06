"""The launches of a step's sampling; see the package for what each of them finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from pellucid.sample.groups import largest
from pellucid.sample.logprobs import Described, Logprobs
from pellucid.sample.penalties import Penalties
from pellucid.sample.sampler import SamplingColumns
from pellucid.sample.transfer import to_device
from pellucid.sample.triton import describe, draw
from pellucid.sample.triton.counts import Counts
from pellucid.sample.triton.edits import Edits, checked
from pellucid.sample.triton.table import Table

Ints = NDArray[np.int64]
FEWEST_LANES = 32
# Products are not contracted with sums, or variants of a kernel could round differently.
LAUNCH: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}


class TritonSampler(Edits):
    """Samples from float32 tensors [n, V] on a GPU.

    Everything is put on torch's current stream, in the order of the calls; but for `logprobs`,
    which hands out arrays, nothing waits for it.

    Args:
        num_rows: of the columns, which are those of the penalties too.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self._table = Table()
        self._counts = Counts(num_rows)

    def penalise(
        self,
        logits: Tensor,
        places: Sequence[int],
        rows: Sequence[int],
        penalties: Sequence[Penalties],
    ) -> None:
        """See `apply_penalties`: the same bits."""
        self._counts.penalise(checked(logits), places, rows, penalties)

    def sample(self, logits: Tensor, columns: SamplingColumns, rows: Ints) -> tuple[Tensor, Tensor]:
        """See `sampler.sample`: int64 and bool tensors, which may still be computed.

        `rows` are all different. A row is cheapest if it stands one position further every time.
        """
        n, vocab = logits.shape
        device = logits.device
        tokens = torch.empty(n, dtype=torch.int64, device=device)
        failed = torch.empty(n, dtype=torch.int32, device=device)
        if n == 0:
            return tokens, failed.bool()
        logits = _aligned(logits)
        table, lines, wanted = self._table.update(columns, rows, vocab, device)
        parts, lanes = _parts(vocab)
        peaks = torch.empty((n, parts), dtype=torch.float32, device=device)
        places = torch.empty((n, parts), dtype=torch.int32, device=device)
        draw.scan_kernel[(n, parts)](logits, peaks, places, vocab, PARTS=parts, **LAUNCH)
        floors = masses = None
        if wanted.drawn:
            floors = torch.empty(n, dtype=torch.float32, device=device)
            masses = torch.empty((n, parts), dtype=torch.float64, device=device)
            counts, state = self._select(logits, table, lines) if wanted.top_k else (None, None)
            draw.weigh_kernel[(n, parts)](
                *(logits, table, lines, peaks, counts, state, floors, masses, vocab),
                TOP_KS=wanted.top_k,
                PARTS=parts,
                LANES=lanes,
                **LAUNCH,
            )
        draw.draw_kernel[(n,)](
            *(logits, table, lines, peaks, places, floors, masses, tokens, failed, vocab),
            DRAWN=wanted.drawn,
            NUCLEUS=wanted.nucleus,
            PARTS=parts,
            LANES=lanes,
            **LAUNCH,
        )
        self._counts.count(tokens, failed)
        return tokens, failed.bool()

    def logprobs(self, logits: Tensor, token_ids: Ints, num_top: int) -> Logprobs:
        return self.describe(logits, to_device(token_ids, logits.device), num_top).read()

    def describe(self, logits: Tensor, token_ids: Tensor, num_top: int) -> Described:
        """Start on the log probabilities of tokens [n] on the device; see `compute_logprobs`."""
        n, vocab = logits.shape
        device = logits.device
        logits = _aligned(logits)
        parts, lanes = _parts(vocab)
        peaks = torch.empty((n, parts), dtype=torch.float32, device=device)
        sums = torch.empty((n, parts), dtype=torch.float64, device=device)
        likelier = torch.empty((n, parts), dtype=torch.int32, device=device)
        normalisers = torch.empty(n, dtype=torch.float64, device=device)
        ranks = torch.empty(n, dtype=torch.int64, device=device)
        if n:
            describe.describe_parts_kernel[(n, parts)](
                *(logits, token_ids, peaks, sums, likelier, vocab), PARTS=parts, **LAUNCH
            )
            describe.describe_rows_kernel[(n,)](
                *(peaks, sums, likelier, normalisers, ranks), PARTS=parts, LANES=lanes, **LAUNCH
            )
        ids = torch.cat((token_ids[:, None], largest(logits, min(num_top, vocab))), dim=1)
        found = logits.gather(1, ids).double() - normalisers[:, None]
        return Described(ids, found.float(), ranks)

    def _select(self, logits: Tensor, table: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
        """The digits of each row's k-th largest logit, counted."""
        n, vocab = logits.shape
        parts, lanes = _parts(vocab)
        digits, bins = draw.DIGITS.value, draw.BINS.value
        counts = torch.empty((n, digits, parts, bins), dtype=torch.int32, device=logits.device)
        state = torch.empty((n, digits, 2), dtype=torch.int32, device=logits.device)
        for digit in range(digits):
            draw.digit_kernel[(n, parts)](
                *(logits, table, lines, counts, state, vocab),
                DIGIT=digit,
                PARTS=parts,
                LANES=lanes,
                **LAUNCH,
            )
        return counts, state


def _parts(vocab: int) -> tuple[int, int]:
    parts = triton.cdiv(vocab, draw.PART.value)
    return parts, max(FEWEST_LANES, triton.next_power_of_2(parts))


def _aligned(logits: Tensor) -> Tensor:
    """The logits where every step's would lie: alignment decides about the variant of a kernel."""
    logits = checked(logits.contiguous())
    return logits if logits.data_ptr() % 16 == 0 else logits.clone()
