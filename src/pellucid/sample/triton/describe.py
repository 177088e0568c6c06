"""Log probabilities of raw logits: the normaliser of each row and the rank of a token."""

import triton
import triton.language as tl

from pellucid.sample.triton.draw import part_of_row


@triton.jit
def describe_parts_kernel(
    logits,
    chosen,  # [rows] int64: a token of each row
    peaks,  # [rows, PARTS] float32
    sums,  # [rows, PARTS] float64: of e^(logit - peak)
    likelier,  # [rows, PARTS] int32: logits above the chosen one
    vocab,
    PARTS: tl.constexpr,
):
    """Grid (rows, PARTS)."""
    row, part = tl.program_id(0), tl.program_id(1)
    x, _ = part_of_row(logits, row, part, vocab)
    own = tl.load(logits + row.to(tl.int64) * vocab + tl.load(chosen + row))
    missing = tl.max((x != x).to(tl.int32), axis=0) > 0
    peak = tl.where(missing, float("nan"), tl.max(x, axis=0))
    # A part of -inf alone adds nothing.
    weights = tl.where(x > float("-inf"), tl.exp(x - peak), 0.0)
    line = row * PARTS + part
    tl.store(peaks + line, peak)
    tl.store(sums + line, tl.sum(weights.to(tl.float64), axis=0))
    tl.store(likelier + line, tl.sum((x > own).to(tl.int32), axis=0))


@triton.jit
def describe_rows_kernel(
    peaks,
    sums,
    likelier,
    normalisers,  # [rows] float64: log of the sum of e^logit; not finite where a logit is not
    ranks,  # [rows] int64: 1 + number of tokens strictly likelier
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid (rows)."""
    row, lane = tl.program_id(0), tl.arange(0, LANES)
    seen = lane < PARTS
    peak = tl.load(peaks + row * PARTS + lane, mask=seen, other=float("-inf"))
    total = tl.load(sums + row * PARTS + lane, mask=seen, other=0.0)
    missing = tl.max((peak != peak).to(tl.int32), axis=0) > 0
    best = tl.where(missing, float("nan"), tl.max(peak, axis=0))
    share = tl.where(total > 0.0, tl.exp((peak - best).to(tl.float64)), 0.0)
    normaliser = best.to(tl.float64) + tl.log(tl.sum(total * share, axis=0))
    tl.store(normalisers + row, normaliser)
    count = tl.sum(tl.load(likelier + row * PARTS + lane, mask=seen, other=0), axis=0)
    tl.store(ranks + row, 1 + count.to(tl.int64))
