"""Penalties, by counts that stay on the GPU: for each row a line of the vocabulary, of int32.

      0       the row's sequence does not hold the token
      1 + n   it does, and it was generated n times (0: it stands in the prompt alone)

A line is told when a request's tokens are first penalised, as the host knows them then. From then
on each token is counted where it is drawn, so that a step that goes on sends nothing, and need not
know the tokens of the one before.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from pellucid.sample.penalties import Penalties
from pellucid.sample.transfer import Kept, to_device

BLOCK = tl.constexpr(1024)


@triton.jit
def penalty_kernel(
    logits,
    counts,  # [lines, vocab] int32
    factors,  # [lines, 3] float32: repetition, frequency, presence
    places,  # [n] int32: rows of the logits
    lines,  # [n] int32: their lines
    vocab,
):
    """Grid (n, blocks of the vocabulary). See `apply_penalties`, which rounds alike."""
    index = tl.program_id(0)
    line = tl.load(lines + index).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    entry = tl.load(counts + line * vocab + token, mask=token < vocab, other=0)
    held = entry > 0
    repetition = tl.load(factors + line * 3)
    frequency, presence = tl.load(factors + line * 3 + 1), tl.load(factors + line * 3 + 2)

    logit = logits + tl.load(places + index).to(tl.int64) * vocab + token
    x = tl.load(logit, mask=held, other=0.0)
    x = tl.where(x > 0.0, tl.div_rn(x, tl.broadcast_to(repetition, x.shape)), x * repetition)
    x = x - frequency * (entry - 1).to(tl.float32)
    x = x - tl.where(entry > 1, presence, 0.0)
    tl.store(logit, x, mask=held)


@triton.jit(do_not_specialize=["n"])
def count_kernel(
    counts,
    places,
    lines,
    tokens,  # [rows of the logits] int64
    failed,  # [rows of the logits] int32: there is no token
    n,
    vocab,
):
    """Grid (blocks of the lines, which are all different): count what was drawn for each."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    place = tl.load(places + index, mask=inside, other=0)
    line = tl.load(lines + index, mask=inside, other=0).to(tl.int64)
    inside = inside & (tl.load(failed + place, mask=inside, other=1) == 0)
    entry = counts + line * vocab + tl.load(tokens + place, mask=inside, other=0)
    count = tl.load(entry, mask=inside, other=0)
    tl.store(entry, tl.maximum(count, 1) + 1, mask=inside)


class Counts:
    """Lines of `num_rows` rows, and whose tokens they count."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._held: dict[int, Penalties] = {}
        self._table = torch.empty((0, 0), dtype=torch.int32)
        self._factors: Tensor
        self._where = Kept()
        self._penalised: list[Tensor] = []  # places and lines, until their tokens are drawn

    def penalise(
        self,
        logits: Tensor,
        places: Sequence[int],
        rows: Sequence[int],
        penalties: Sequence[Penalties],
    ) -> None:
        """See `Sampler.penalise`."""
        device, vocab = logits.device, logits.shape[1]
        if self._table.shape[1] != vocab:
            self._table = torch.empty((self._num_rows, vocab), dtype=torch.int32, device=device)
            self._factors = torch.empty((self._num_rows, 3), dtype=torch.float32, device=device)
            self._held.clear()
        new = [(r, p) for r, p in zip(rows, penalties, strict=True) if self._held.get(r) is not p]
        if new:
            self._tell(*zip(*new, strict=True))
        self._penalised = self._where.tensors(
            (tuple(places), tuple(rows)),
            device,
            lambda: [np.asarray(numbers, np.int32) for numbers in (places, rows)],
        )
        penalty_kernel[(len(places), triton.cdiv(vocab, BLOCK.value))](
            *(logits, self._table, self._factors, *self._penalised, vocab), enable_fp_fusion=False
        )

    def count(self, tokens: Tensor, failed: Tensor) -> None:
        """Count what was drawn from the logits that were last penalised, if any were."""
        if self._penalised:
            n = len(self._penalised[0])
            count_kernel[(triton.cdiv(n, BLOCK.value),)](
                self._table, *self._penalised, tokens, failed, n, self._table.shape[1]
            )
            self._penalised = []

    def _tell(self, rows: Sequence[int], penalties: Sequence[Penalties]) -> None:
        """Fill the lines of rows that begin, or begin again."""
        device, vocab = self._table.device, self._table.shape[1]
        lengths = [len(p.counts.token_ids) for p in penalties]
        lines = np.array(rows, np.int64)
        ids = np.concatenate([p.counts.token_ids for p in penalties])
        entries = np.concatenate([p.counts.generated for p in penalties]).astype(np.int32) + 1
        factors = [(p.repetition, p.frequency, p.presence) for p in penalties]
        sent = to_device(lines, device)
        self._factors.index_copy_(0, sent, to_device(np.array(factors, np.float32), device))
        self._table.index_fill_(0, sent, 0)
        where = to_device(np.repeat(lines * vocab, lengths) + ids, device)
        self._table.view(-1).index_copy_(0, where, to_device(entries, device))
        self._held.update(zip(rows, penalties, strict=True))
