"""Four ways to keep keys and values, under one model and one attention.

The model's code is pellucid's (`models/decoder.py`); the ops below differ in where K and V are kept
and in nothing else, so what differs in time is the cache. One sequence at a time, no padding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, KVLayer, Weight
from pellucid.kernels.reference import ReferenceOps
from pellucid.layers.loading import WeightSource
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model

BLOCK_SIZE = 16
CPU = torch.device("cpu")


class NoCache(ReferenceOps):
    """Every step computes the whole text again, so its own K and V are all there are."""

    recomputes = True

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """Without the tiles that buy batch invariance: one sequence has no company."""
        return F.linear(x, weight, bias)

    def plan_attention(
        self,
        inputs: AttentionInputs,
        kv: KVLayer,
        num_heads: int,
        windows: Sequence[int | None] = (None,),
    ) -> object:
        return ()

    def room(self, config: ModelConfig, length: int) -> KVLayer:
        """What a layer starts with, for a text of at most `length` tokens."""
        empty = torch.empty(0, config.num_kv_heads, config.head_dim)
        return KVLayer(empty, empty)

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        kv.k, kv.v = k, v

    def read(self, pool: Tensor, inputs: AttentionInputs) -> Tensor:
        """All keys, or values, of the text so far: [tokens, G, D]."""
        return pool

    def paged_attention(
        self,
        q: Tensor,
        kv: KVLayer,
        inputs: AttentionInputs,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        return self.attend(q, kv, inputs, scale)

    def attend(self, q: Tensor, kv: KVLayer, inputs: AttentionInputs, scale: float) -> Tensor:
        """[T, H, D]: of one sequence whose T last tokens are this step's; T is 1 or all."""
        keys, values = (self.read(pool, inputs).transpose(0, 1) for pool in (kv.k, kv.v))
        mixed = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            is_causal=len(q) > 1,
            scale=scale,
            enable_gqa=q.shape[1] != keys.shape[0],
        )
        return mixed[0].transpose(0, 1)


class Concatenated(NoCache):
    """A tensor that is copied into a longer one at every token."""

    recomputes = False

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        kv.k, kv.v = torch.cat((kv.k, k)), torch.cat((kv.v, v))


class Contiguous(NoCache):
    """One piece of memory for the longest text there could be, taken at the start."""

    recomputes = False

    def room(self, config: ModelConfig, length: int) -> KVLayer:
        shape = (length, config.num_kv_heads, config.head_dim)
        return KVLayer(torch.zeros(shape), torch.zeros(shape))

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        end = inputs.seq_lens_list[0]
        kv.k[end - len(k) : end] = k
        kv.v[end - len(v) : end] = v

    def read(self, pool: Tensor, inputs: AttentionInputs) -> Tensor:
        return pool[: inputs.seq_lens_list[0]]


class Paged(NoCache):
    """Blocks anywhere in a pool, found through a block table; written as the reference does."""

    recomputes = False

    def room(self, config: ModelConfig, length: int) -> KVLayer:
        shape = (-(-length // BLOCK_SIZE), BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        return KVLayer(torch.zeros(shape), torch.zeros(shape))

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        ReferenceOps.write_kv(self, k, v, inputs, kv)

    def read(self, pool: Tensor, inputs: AttentionInputs) -> Tensor:
        length = inputs.seq_lens_list[0]
        blocks = inputs.block_tables[0, : -(-length // BLOCK_SIZE)]
        return pool.index_select(0, blocks).flatten(0, 1)[:length]


CACHES: dict[str, type[NoCache]] = {
    "none": NoCache,
    "concatenated": Concatenated,
    "contiguous": Contiguous,
    "paged": Paged,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """Greedy tokens, the seconds that each took, and how many positions each computed."""

    token_ids: list[int]
    seconds: list[float]
    positions: list[int]


def load(config: ModelConfig, weights: WeightSource, max_len: int) -> Model:
    """The model in float32 on the CPU. `generate` sets the ops of its layers."""
    return build_model(config, weights, SharedOps(), torch.float32, CPU, max_len)


class SharedOps(NoCache):
    """Hands everything to the cache at hand, so that one copy of the weights serves all."""

    def __init__(self) -> None:
        self.cache: NoCache = NoCache()

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        self.cache.write_kv(k, v, inputs, kv)

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
        return self.cache.rope_and_write_kv(q, k, v, cos, sin, inputs, kv)

    def attend(self, q: Tensor, kv: KVLayer, inputs: AttentionInputs, scale: float) -> Tensor:
        return self.cache.attend(q, kv, inputs, scale)


@torch.inference_mode()
def generate(model: Model, cache: str, prompt: list[int], num_tokens: int) -> Generation:
    """Greedy continuation of `prompt` with the cache that `CACHES` calls so."""
    assert isinstance(model.ops, SharedOps)
    ops = model.ops.cache = CACHES[cache]()
    longest = len(prompt) + num_tokens
    kv = [ops.room(model.config, longest) for _ in model.layers]
    # Blocks in no order, as they are in a pool that many have used.
    shuffled = torch.randperm(-(-longest // BLOCK_SIZE), generator=torch.Generator().manual_seed(0))
    known, computed = list(prompt), 0
    made = Generation([], [], [])
    for _ in range(num_tokens):
        begin = time.perf_counter()
        start = 0 if ops.recomputes else computed
        step = torch.tensor(known[start:])
        states = model.forward(step, step_inputs(start, len(known), shuffled), kv)
        token = int(model.logits(states[-1:]).argmax())
        made.seconds.append(time.perf_counter() - begin)
        made.positions.append(len(step))
        made.token_ids.append(token)
        computed = len(known)
        known.append(token)
    return made


def step_inputs(start: int, end: int, blocks: Tensor | None = None) -> AttentionInputs:
    """Tokens [start, end) of one text, which lies in `blocks`; by default in order."""
    if blocks is None:
        blocks = torch.arange(-(-end // BLOCK_SIZE))
    positions = torch.arange(start, end)
    slots = blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return AttentionInputs(
        positions=positions,
        slot_mapping=slots,
        block_tables=blocks[None].int(),
        query_start=torch.tensor([0, end - start], dtype=torch.int32),
        seq_lens=torch.tensor([end], dtype=torch.int32),
        query_lens_list=[end - start],
        seq_lens_list=[end],
    )
