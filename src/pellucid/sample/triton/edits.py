"""Changes to logits in place: penalties on tokens that a sequence holds, and a grammar's bans."""

import triton
import triton.language as tl

BLOCK = tl.constexpr(1024)


@triton.jit
def penalty_kernel(
    logits,
    ids,  # of all rows, one after the other, int32
    generated,  # likewise: how often each was generated, float32
    starts,  # [n + 1] int32: where the tokens of each row begin
    rows,  # [n] int32: of the logits
    factors,  # [n, 3] float32: repetition, frequency, presence
    vocab,
):
    """Grid (n, blocks of the longest row). See `apply_penalties`, which rounds alike."""
    index = tl.program_id(0)
    begin, end = tl.load(starts + index), tl.load(starts + index + 1)
    place = begin + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < end
    token = tl.load(ids + place, mask=inside, other=0)
    count = tl.load(generated + place, mask=inside, other=0.0)
    repetition = tl.load(factors + index * 3)
    frequency, presence = tl.load(factors + index * 3 + 1), tl.load(factors + index * 3 + 2)

    logit = logits + tl.load(rows + index).to(tl.int64) * vocab + token
    x = tl.load(logit, mask=inside, other=0.0)
    x = tl.where(x > 0.0, tl.div_rn(x, tl.broadcast_to(repetition, x.shape)), x * repetition)
    x = x - frequency * count
    x = x - tl.where(count > 0.0, presence, 0.0)
    tl.store(logit, x, mask=inside)


@triton.jit
def forbid_kernel(
    logits,
    masks,  # [n, words] int32: bit i % 32 of word i // 32 is set if token i is allowed
    rows,  # [n] int32: of the logits
    words,
    vocab,
):
    """Grid (n, blocks of the vocabulary): -inf wherever the bit is not set."""
    index = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(masks + index.to(tl.int64) * words + token // 32, mask=token < vocab, other=0)
    forbidden = ((word >> (token % 32)) & 1) == 0
    logit = logits + tl.load(rows + index).to(tl.int64) * vocab + token
    minus_infinity = tl.full([BLOCK], float("-inf"), tl.float32)
    tl.store(logit, minus_infinity, mask=(token < vocab) & forbidden)
