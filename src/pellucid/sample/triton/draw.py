"""From logits to a token per row: the kernels of scan, digits, weigh and draw.

V ids of a row are PARTS parts of PART; `lanes` of a program are parts, padded to a power of two.
"""

import triton
import triton.language as tl

from pellucid.sample.triton.random import uniform
from pellucid.sample.triton.table import (
    MIN_P,
    POSITION,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    float_field,
    line_of,
    move_on,
    word_field,
)

PART = tl.constexpr(4096)  # ids
DIGITS = tl.constexpr(4)  # of a float's 32 bits
BINS = tl.constexpr(256)
NOWHERE = tl.constexpr(0x7FFFFFFF)
MOST_DRAWS = tl.constexpr(1000)  # each leaves fewer tokens; if rounding did not, it would hang
BELOW_ONE = tl.constexpr(1.0 - 2.0**-52)


@triton.jit
def part_of_row(logits, row, part, vocab):
    """Logits of a part [PART], -inf beyond the vocabulary, and their ids."""
    ids = part * PART + tl.arange(0, PART)
    start = logits + row.to(tl.int64) * vocab
    return tl.load(start + ids, mask=ids < vocab, other=float("-inf")), ids


@triton.jit
def scan_kernel(logits, peaks, places, vocab, PARTS: tl.constexpr):
    """Grid (rows, PARTS): each part's largest logit, NaN if it holds one, and its lowest id."""
    row, part = tl.program_id(0), tl.program_id(1)
    x, ids = part_of_row(logits, row, part, vocab)
    missing = x != x
    peak = tl.max(tl.where(missing, float("-inf"), x), axis=0)
    place = tl.min(tl.where(x == peak, ids, NOWHERE), axis=0)
    broken = tl.max(missing.to(tl.int32), axis=0) > 0
    tl.store(peaks + row * PARTS + part, tl.where(broken, float("nan"), peak))
    tl.store(places + row * PARTS + part, place)


@triton.jit
def best_of_row(peaks, row, PARTS: tl.constexpr, LANES: tl.constexpr):
    """The row's largest logit, and whether it is finite."""
    lane = tl.arange(0, LANES)
    peak = tl.load(peaks + row * PARTS + lane, mask=lane < PARTS, other=float("-inf"))
    missing = peak != peak
    best = tl.max(tl.where(missing, float("-inf"), peak), axis=0)
    broken = tl.max(missing.to(tl.int32), axis=0) > 0
    finite = (best > float("-inf")) & (best < float("inf")) & (broken == 0)
    return best, finite


@triton.jit
def ordered(x):
    """A float's bits as an unsigned integer that sorts as the float does."""
    bits = x.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def digit_found(counts, state, row, DIGIT: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr):
    """The k-th largest key up to DIGIT: a prefix, and its k among the keys that share it."""
    line = state + (row * DIGITS + DIGIT) * 2
    prefix = tl.load(line).to(tl.uint32, bitcast=True)
    missing = tl.load(line + 1)
    lane, bin = tl.arange(0, LANES), tl.arange(0, BINS)
    line = (row.to(tl.int64) * DIGITS + DIGIT) * PARTS + lane
    place = counts + line[:, None] * BINS + bin[None, :]
    count = tl.sum(tl.load(place, mask=(lane < PARTS)[:, None], other=0), axis=0)
    above = tl.sum(count, axis=0) - tl.cumsum(count, axis=0)  # keys with a larger digit
    digit = tl.sum((above + count >= missing).to(tl.int32), axis=0) - 1
    taken = tl.sum(tl.where(bin == digit, above, 0), axis=0)
    return (prefix << 8) | digit.to(tl.uint32), missing - taken


@triton.jit
def digit_kernel(
    logits,
    table,
    lines,
    counts,  # [rows, DIGITS, PARTS, BINS] int32
    state,  # [rows, DIGITS, 2] int32: prefix and remaining k before each digit
    vocab,
    DIGIT: tl.constexpr,  # the one that is counted, from the highest
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid (rows, PARTS). Settles the digit before, and counts what follows it in the part."""
    row, part = tl.program_id(0), tl.program_id(1)
    k = tl.load(line_of(table, lines, row) + TOP_K)
    if k > 0:
        prefix, missing = k.to(tl.uint32) * 0, k
        if DIGIT > 0:
            prefix, missing = digit_found(counts, state, row, DIGIT - 1, PARTS, LANES)
        if part == 0:
            line = state + (row * DIGITS + DIGIT) * 2
            tl.store(line, prefix.to(tl.int32, bitcast=True))
            tl.store(line + 1, missing)
        x, ids = part_of_row(logits, row, part, vocab)
        key = ordered(x)
        counted = ids < vocab
        if DIGIT > 0:
            counted = counted & ((key >> (32 - 8 * DIGIT)) == prefix)
        digit = ((key >> (24 - 8 * DIGIT)) & 255).to(tl.int32)
        count = tl.histogram(tl.where(counted, digit, 0), BINS)
        bin = tl.arange(0, BINS)
        strangers = PART - tl.sum(counted.to(tl.int32), axis=0)  # they were put into the first bin
        count = count - tl.where(bin == 0, strangers, 0)
        place = ((row.to(tl.int64) * DIGITS + DIGIT) * PARTS + part) * BINS
        tl.store(counts + place + bin, count)


@triton.jit
def kth_largest(counts, state, row, PARTS: tl.constexpr, LANES: tl.constexpr):
    """The logit that the digits spell."""
    key, _ = digit_found(counts, state, row, DIGITS - 1, PARTS, LANES)
    bits = (key ^ 0x80000000).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weights_of(x, best, temperature, floor):
    """Probabilities but for a factor; the best logit has 1, what a filter excludes has 0."""
    return tl.where(x >= floor, tl.exp((x - best) / temperature), 0.0)


@triton.jit
def weigh_kernel(
    logits,
    table,
    lines,
    peaks,
    counts,
    state,
    floors,  # [rows] float32: the least logit that min_p and top_k let through
    masses,  # [rows, PARTS] float64
    vocab,
    TOP_KS: tl.constexpr,  # whether some row has a top_k
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid (rows, PARTS): what each part weighs."""
    row, part = tl.program_id(0), tl.program_id(1)
    best, finite = best_of_row(peaks, row, PARTS, LANES)
    line = line_of(table, lines, row)
    temperature = float_field(line, TEMPERATURE)
    if finite & (temperature != 0.0):
        min_p = float_field(line, MIN_P)
        floor = tl.full([], float("-inf"), tl.float32)
        if min_p > 0.0:
            floor = best + temperature * tl.log(min_p)
        if TOP_KS:
            if tl.load(line + TOP_K) > 0:
                kth = kth_largest(counts, state, row, PARTS, LANES)
                floor = tl.maximum(floor, kth)
        x, _ = part_of_row(logits, row, part, vocab)
        weights = weights_of(x, best, temperature, floor)
        tl.store(masses + row * PARTS + part, tl.sum(weights.to(tl.float64), axis=0))
        if part == 0:
            tl.store(floors + row, floor)


@triton.jit
def where_passed(mass, target, LANES: tl.constexpr):
    """Of masses [LANES] the place where their running total exceeds `target`.

    Also the total before that place. It is never one without mass: where rounding leaves nothing
    beyond the target, it is the last that has any.
    """
    lane = tl.arange(0, LANES)
    total = tl.cumsum(mass, axis=0)
    place = tl.sum((total <= target).to(tl.int32), axis=0)
    place = tl.minimum(place, tl.max(tl.where(mass > 0.0, lane, 0), axis=0))
    return place, tl.sum(tl.where(lane == place, total - mass, 0.0), axis=0)


@triton.jit
def id_in_part(weights, share, part):
    """An id by its share of the part's weights [PART], and its own weight."""
    wide = weights.to(tl.float64)
    place, _ = where_passed(wide, share * tl.sum(wide, axis=0), PART)
    weight = tl.sum(tl.where(tl.arange(0, PART) == place, weights, 0.0), axis=0)
    return part * PART + place, weight


@triton.jit
def draw_kernel(
    logits,
    table,
    lines,
    peaks,
    places,
    floors,
    masses,
    tokens,  # [rows] int64
    failed,  # [rows] int32
    vocab,
    DRAWN: tl.constexpr,  # whether some row is not greedy
    NUCLEUS: tl.constexpr,  # whether some row has a top_p
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid (rows): the token of each. In the table, its position moves on to the next."""
    row = tl.program_id(0)
    line = line_of(table, lines, row)
    lane = tl.arange(0, LANES)
    best, finite = best_of_row(peaks, row, PARTS, LANES)
    peak = tl.load(peaks + row * PARTS + lane, mask=lane < PARTS, other=float("-inf"))
    place = tl.load(places + row * PARTS + lane, mask=lane < PARTS, other=NOWHERE)
    token = tl.min(tl.where(peak == best, place, NOWHERE), axis=0)
    if DRAWN:
        temperature = float_field(line, TEMPERATURE)
        if finite & (temperature != 0.0):
            floor = tl.load(floors + row)
            mass = tl.load(masses + row * PARTS + lane, mask=lane < PARTS, other=0.0)
            token = drawn_token(
                logits, line, peak, mass, row, best, temperature, floor, vocab,
                NUCLEUS, PARTS, LANES,
            )  # fmt: skip
    tl.store(tokens + row, tl.where(finite, token, 0).to(tl.int64))
    tl.store(failed + row, tl.where(finite, 0, 1))
    tl.debug_barrier()  # all threads have read the position
    move_on(line)


@triton.jit
def drawn_token(
    logits,
    line,
    peak,  # [LANES]
    mass,  # [LANES]
    row,
    best,
    temperature,
    floor,
    vocab,
    NUCLEUS: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """See `sample/sampler.py`: a token outside of the nucleus is drawn again among the likelier."""
    lane = tl.arange(0, LANES)
    seed_low, seed_high = word_field(line, SEED), word_field(line, SEED + 1)
    position_low = word_field(line, POSITION)
    position_high = word_field(line, POSITION + 1)
    total = tl.sum(mass, axis=0)
    draw = seed_low * 0
    capacity = total
    if NUCLEUS:
        capacity = float_field(line, TOP_P).to(tl.float64) * total
        if capacity >= total:
            capacity = capacity + float("inf")  # no nucleus
    bound = tl.full([], 0.0, tl.float32)  # what is drawn from weighs more than this
    token = tl.full([], 0, tl.int32)
    drawing = tl.full([], True, tl.int1)
    while drawing:
        target = uniform(seed_low, seed_high, position_low, position_high, draw) * total
        part, before = where_passed(mass, target, LANES)
        own = tl.sum(tl.where(lane == part, mass, 0.0), axis=0)
        share = tl.minimum(tl.maximum((target - before) / own, 0.0), BELOW_ONE)
        x, _ = part_of_row(logits, row, part, vocab)
        weights = weights_of(x, best, temperature, floor)
        token, weight = id_in_part(tl.where(weights > bound, weights, 0.0), share, part)
        drawing = capacity < 0.0
        if NUCLEUS:
            if capacity < float("inf"):
                bound = weight
                peak_weight = weights_of(peak, best, temperature, floor)
                mass = likelier(
                    logits, peak_weight, row, best, temperature, floor, bound, vocab, PARTS, LANES
                )
                total = tl.sum(mass, axis=0)
                drawing = (total >= capacity) & (total > 0.0) & (draw < MOST_DRAWS)
                draw += 1
    return token


@triton.jit
def likelier(
    logits,
    peak_weight,  # [LANES]
    row,
    best,
    temperature,
    floor,
    bound,
    vocab,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """What weighs more than `bound`, by part: [LANES] float64. Parts without any are not read."""
    lane = tl.arange(0, LANES)
    mass = tl.zeros([LANES], tl.float64)
    for part in range(PARTS):
        if tl.sum(tl.where(lane == part, peak_weight, 0.0), axis=0) > bound:
            x, _ = part_of_row(logits, row, part, vocab)
            weights = weights_of(x, best, temperature, floor)
            above = tl.where(weights > bound, weights, 0.0).to(tl.float64)
            mass = tl.where(lane == part, tl.sum(above, axis=0), mass)
    return mass
