"""Caches for texts without end: a window of late tokens behind a few first ones, or all there are.

As in `caches.py` the model's code is pellucid's and only the ops differ. One sequence at a time,
read in steps of any size, so that a long text can be scored in chunks and timed token by token.

Softmax hands out all of its weight whether or not there is anything to look at, and models learn
to leave what they do not need with the first tokens of a text, which every later one can see. A
window that moves past them takes that away; keeping a few of them, the attention sinks, is enough
(Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks").
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer
from pellucid.lab.caches import Contiguous, NoCache, SharedOps, step_inputs
from pellucid.models.base import Model


class KeepAll(Contiguous):
    """Keys rotated once, to their places in the text, and never forgotten."""

    def attend(self, q: Tensor, kv: KVLayer, inputs: AttentionInputs, scale: float) -> Tensor:
        """[T, H, D]: of one sequence whose T last tokens are this step's."""
        keys, values = self.read(kv.k, inputs), self.read(kv.v, inputs)
        places = torch.arange(len(keys))
        visible = places <= places[-len(q) :, None]
        return _mixed(_scores(q, keys) * scale, visible, values)


class Evicting(NoCache):
    """The first `sinks` tokens and the last `window`, the one that looks included.

    Keys are kept unrotated and rotated whenever they are read, to their places within the cache:
    however long the text, no place beyond `sinks + window` is met. Distances within the window are
    those of the text; to a sink they stop growing when the cache is full.
    """

    recomputes = False

    def __init__(self, sinks: int, window: int) -> None:
        self.sinks = sinks
        self.window = window

    def rope_and_write_kv(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        inputs: AttentionInputs,
        kv: KVLayer,
    ) -> Tensor:
        self._cos, self._sin = cos, sin
        self.write_kv(k, v, inputs, kv)
        return q

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        """Append, then forget what neither this step nor a later one can see."""
        kv.k, kv.v = (self._kept(torch.cat(pair), len(k)) for pair in ((kv.k, k), (kv.v, v)))

    def _kept(self, rows: Tensor, step: int) -> Tensor:
        surplus = len(rows) - (self.sinks + self.window - 1 + step)
        if surplus <= 0:
            return rows
        return torch.cat((rows[: self.sinks], rows[self.sinks + surplus :]))

    def attend(self, q: Tensor, kv: KVLayer, inputs: AttentionInputs, scale: float) -> Tensor:
        """[T, H, D]: each of the step's T tokens sees what a step of its own would have left it."""
        sinks, full = self.sinks, self.sinks + self.window
        places = torch.arange(len(kv.k))
        own = places[-len(q) :]
        keys = self._rotated(kv.k, places)
        scores = _scores(self._rotated(q, own), keys)
        if sinks and len(places) > full:
            # A full cache ends at the token that looks, however many of this step come before it.
            queries = self._rotated(q, own.clamp(max=full - 1))
            scores[..., :sinks] = _scores(queries, keys[:sinks])
        near = places > own[:, None] - self.window
        visible = (places <= own[:, None]) & (near | (places < sinks))
        return _mixed(scores * scale, visible, kv.v)

    def _rotated(self, x: Tensor, places: Tensor) -> Tensor:
        return self.rope(x, self._cos[places], self._sin[places])


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """[T, H, D] by [L, G, D] -> [G, H / G, T, L]."""
    (rows, heads, size), (length, groups, _) = q.shape, keys.shape
    grouped = q.view(rows, groups, heads // groups, size).permute(1, 2, 0, 3)
    scores = torch.matmul(grouped.flatten(1, 2), keys.permute(1, 2, 0))
    return scores.view(groups, heads // groups, rows, length)


def _mixed(scores: Tensor, visible: Tensor, values: Tensor) -> Tensor:
    """Softmax over what is visible, and the sum it weighs: [T, H, D]."""
    groups, shared, rows, _ = scores.shape
    weights = scores.masked_fill_(~visible, -torch.inf).softmax(-1)
    mixed = torch.matmul(weights.flatten(1, 2), values.transpose(0, 1))
    return mixed.view(groups, shared, rows, -1).permute(2, 0, 1, 3).flatten(1, 2)


@dataclass(slots=True)
class Reading:
    """A text read to its end; the lists of a stop are in order of the stops."""

    surprises: list[float] = field(default_factory=list)  # -log p of tokens 1, 2, ...; nats
    seconds: list[list[float]] = field(default_factory=list)  # of each token timed before a stop
    kv_bytes: list[int] = field(default_factory=list)  # held at a stop, over all layers


@torch.inference_mode()
def read(
    model: Model, cache: NoCache, text: list[int], *, chunk: int, stop: int, timed: int
) -> Reading:
    """Score `text` with `cache`, in steps of `chunk`; every `stop` tokens the last `timed` alone.

    `model` is one of `caches.load`.
    """
    assert isinstance(model.ops, SharedOps)
    model.ops.cache = cache
    kv = [cache.room(model.config, len(text)) for _ in model.layers]
    made = Reading()
    for begin, end in steps(len(text), chunk, stop, timed):
        start = time.perf_counter()
        states = model.forward(torch.tensor(text[begin:end]), step_inputs(begin, end), kv)
        logits = model.logits(states)
        seconds = time.perf_counter() - start
        following = torch.tensor(text[begin + 1 : end + 1], dtype=torch.int64)
        losses = F.cross_entropy(logits[: len(following)], following, reduction="none")
        made.surprises += losses.tolist()
        if end == begin + 1 and stop - begin % stop <= timed:
            if stop - begin % stop == timed:
                made.seconds.append([])
            made.seconds[-1].append(seconds)
        if end % stop == 0:
            made.kv_bytes.append(sum(_held(layer, cache, end) for layer in kv))
    return made


def _held(layer: KVLayer, cache: NoCache, length: int) -> int:
    """Bytes of keys and values of the tokens that `cache` still has; not of reserved room."""
    tokens = min(length, len(layer.k))
    return tokens * (layer.k[0].nbytes + layer.v[0].nbytes)


def steps(length: int, chunk: int, stop: int, timed: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each: chunks, but single tokens for the last `timed` before each stop."""
    begin = 0
    while begin < length:
        left = stop - begin % stop  # tokens to the next stop
        end = begin + (1 if left <= timed else min(chunk, left - timed))
        yield begin, min(end, length)
        begin = end
