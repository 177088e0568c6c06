"""Every op in plain torch: what the other backends are tested against, on CPU and GPU alike.

The order in which a row is summed depends on that row alone, so on the CPU a row's result is
bit-identical whatever shares its step. Three things would break that and are avoided here:

- A float32 matrix product picks its kernel by the number of rows: `linear` works on tiles of 16,
  or of other sizes that this machine was seen to round like 16.
- `torch.sigmoid` and `silu` finish each thread's share with scalar code that rounds differently
  from the vector code: `silu_mul` is built on `torch.exp`, which does not.
- Attention must not depend on how a prompt was cut: see `reference_attention`.

Norms, softmax, rotations and activations compute in float32 whatever the dtype of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernels import reference_attention
from pellucid.kernels.int8_heads import round_heads
from pellucid.kernels.interface import AttentionInputs, Experts, KVLayer, Matrix, Weight
from pellucid.kernels.lora import LoraSlot
from pellucid.kernels.ranks import ALONE, Ranks

LOGIT_ROWS = 4096  # of the head, widened at a time: they should stay in the cache
LINEAR_TILE = 16  # rows of a float32 product on the CPU
DEVICE_TILE = 64  # rows of an adapter's products elsewhere
# Others that are used wherever they turn out to give the same bits: to decode a few sequences
# without computing a full tile, and because larger ones cost less per row.
SMALL_TILES = (4, 8)
LARGE_TILES = (128, 32)


class ReferenceOps:
    """The ops of the decoder. A faster backend derives from this and overrides what it has.

    T is the number of rows of the step; none of the ops changes its inputs, except that the two
    writing ops fill their slots of the KV pool.
    """

    name = "reference"
    weight_bytes = 0  # of packed matrices, where a backend holds them in a form of its own
    ranks: Ranks = ALONE  # who computes the model together
    lora_slot: type[LoraSlot] = LoraSlot  # keeps what adapters add to a product for `add_lora`

    def activation_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What activations are in when the model's dtype is `dtype`; biases are in it, too."""
        return dtype

    def pack(self, parts: Sequence[Matrix], dtype: torch.dtype, device: torch.device) -> Weight:
        """`parts`, one above the other, in the form that `linear` and `embedding` work on.

        Here that is a dense tensor. Parts are copied into place one at a time, so that none but the
        one at hand is held twice.
        """
        rows = [part.shape[0] for part in parts]
        whole = torch.empty(sum(rows), parts[0].shape[1], dtype=dtype, device=device)
        for part, place in zip(parts, torch.split(whole, rows), strict=True):
            place.copy_(part.dense(dtype))
        return whole

    def embedding(self, token_ids: Tensor, table: Weight, scale: float = 1.0) -> Tensor:
        """Rows of `table` [vocab, hidden] at `token_ids` [T] int64, times `scale`."""
        rows = F.embedding(token_ids, table)
        return rows if scale == 1.0 else rows * scale

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """`x` [T, in] times `weight` [out, in] transposed, plus `bias` [out] -> [T, out]."""
        if x.dtype == torch.float32 and x.device.type == "cpu":
            return _linear_in_tiles(x, weight, bias)
        return F.linear(x, weight, bias)

    def add_lora(self, y: Tensor, x: Tensor, slot: LoraSlot) -> Tensor:
        """`y` [T, out], the product of `x` [T, in], plus what the rows' adapters add to it."""
        return slot.add(y, x, _linear_in_tiles if x.device.type == "cpu" else _padded_linear)

    def logits(self, x: Tensor, weight: Weight) -> Tensor:
        """`x` [n, hidden] times `weight` [vocab, hidden] transposed -> [n, vocab] float32.

        Summed and kept in float32 whatever the dtype: the 8 bits of a bfloat16 logit of 20 cannot
        tell apart candidates that differ by 0.1, and the greedy choice would fall on either.
        """
        wide = x.float()
        parts = [self.linear(wide, part.float()) for part in weight.split(LOGIT_ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Scale the last dimension to unit root mean square, times `weight` (float32).

        Zhang and Sennrich 2019. The last dimension may be the hidden size or one head.
        """
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * inverse * weight).to(x.dtype)

    def add_rms_norm(
        self, update: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of `residual + update`, and that sum: both [T, hidden]. No residual is zero."""
        total = update if residual is None else residual + update
        return self.rms_norm(total, weight, eps), total

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Zero mean and unit variance over the last dimension; `weight` and `bias` are float32."""
        return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, eps).to(x.dtype)

    def add_layer_norm(
        self,
        update: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """The layer norm of `residual + update`, and that sum: both [T, hidden]."""
        total = update if residual is None else residual + update
        return self.layer_norm(total, weight, bias, eps), total

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the heads of `x` [T, heads, D] (Su et al. 2021).

        `cos` and `sin` [T, rotated / 2] are float32. Component i of the rotated part pairs with
        i + rotated / 2 ("split halves"); the rest of the head passes unchanged.
        """
        half = cos.shape[1]
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)
        a, b = x[..., :half].float(), x[..., half : 2 * half].float()
        first, second = (a * c - b * s).to(x.dtype), (b * c + a * s).to(x.dtype)
        return torch.cat((first, second, x[..., 2 * half :]), dim=-1)

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
        """Rotate `q` [T, H, D] and `k` [T, G, D]; store k and `v` in the pool; return rotated q.

        `cos` and `sin` are the tables of all positions, [max_position, rotated / 2].
        """
        here_cos, here_sin = cos[inputs.positions], sin[inputs.positions]
        self.write_kv(self.rope(k, here_cos, here_sin), v, inputs, kv)
        return self.rope(q, here_cos, here_sin)

    def write_kv(self, k: Tensor, v: Tensor, inputs: AttentionInputs, kv: KVLayer) -> None:
        """Store `k` and `v` [T, G, D] at `inputs.slot_mapping`."""
        for pool, scales, rows in ((kv.k, kv.k_scale, k), (kv.v, kv.v_scale, v)):
            if scales is not None:
                rows, row_scales = round_heads(rows)
                scales.flatten(0, 1).index_copy_(0, inputs.slot_mapping, row_scales)
            pool.flatten(0, 1).index_copy_(0, inputs.slot_mapping, rows.to(pool.dtype))

    def plan_attention(
        self,
        inputs: AttentionInputs,
        kv: KVLayer,
        num_heads: int,
        windows: Sequence[int | None] = (None,),
    ) -> object:
        """Prepare what every layer of the step shares, for each distinct sliding window.

        `kv` gives the pool's shape, any layer's will do. The result belongs in `inputs.plan`.
        """
        return reference_attention.plan(inputs, kv, num_heads, windows)

    def paged_attention(
        self,
        q: Tensor,
        kv: KVLayer,
        inputs: AttentionInputs,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Causal attention of `q` [T, H, D] over each sequence's block table -> [T, H, D].

        A query at position p sees keys max(0, p - window + 1) .. p. With `softcap` c, scores s
        become c * tanh(s / c) (Gemma 2). Needs the `inputs.plan` of `plan_attention`.
        """
        return reference_attention.attend(q, kv, inputs, scale, window, softcap)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, where `gate_up` [T, 2 * I] holds gate then up -> [T, I]."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)

    def gelu_mul(self, gate_up: Tensor, approximate: bool) -> Tensor:
        """gelu(gate) * up, where `gate_up` [T, 2 * I] holds gate then up -> [T, I]."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (_gelu(gate, approximate) * up).to(gate_up.dtype)

    def gelu(self, x: Tensor, approximate: bool) -> Tensor:
        """x * Phi(x); `approximate` takes the tanh formula (Hendrycks and Gimpel 2016)."""
        return _gelu(x.float(), approximate).to(x.dtype)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """`silu_mul` or `gelu_mul`, as `activation` names it: "silu", "gelu" or "gelu_tanh"."""
        if activation == "silu":
            return self.silu_mul(gate_up)
        return self.gelu_mul(gate_up, approximate=activation == "gelu_tanh")

    def experts(
        self, x: Tensor, scores: Tensor, experts: Experts, shared: Tensor | None = None
    ) -> Tensor:
        """Each row's experts of `x` [T, hidden], weighted by their shares and added -> [T, hidden].

        Shazeer et al. 2017; Jiang et al. 2024 (Mixtral). `scores` [T, experts] float32. `shared`
        [T, hidden], what an expert of all rows gave, is added times the sigmoid of one more score
        (Qwen2-MoE). Sums are float32, over ascending experts.
        """
        count = len(experts.gate)
        ids, shares = choose_experts(scores[:, :count], experts.top_k, experts.normalise)
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        if shared is not None:
            total = shared.float() / (1 + torch.exp(-scores[:, count:]))
        choices = ids.flatten().argsort(stable=True)  # those of an expert together, rows in order
        counts = torch.bincount(ids.flatten(), minlength=count).tolist()
        for expert, chosen in enumerate(choices.split(counts)):
            if len(chosen) == 0:
                continue
            rows = chosen // experts.top_k
            here = x[rows]
            gate_up = (self.linear(here, w[expert]) for w in (experts.gate, experts.up))
            inner = self.gated(torch.cat(tuple(gate_up), dim=-1), experts.activation)
            part = self.linear(inner, experts.down[expert]).float()
            total.index_add_(0, rows, part * shares.flatten()[chosen].unsqueeze(1))
        return total.to(x.dtype)

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap): keeps |x| below `cap`."""
        return torch.tanh(x / cap) * cap


ROW_OPS = ("rms_norm", "add_rms_norm", "add_layer_norm", "silu_mul", "gelu_mul", "gelu", "rope")


def compile_row_ops(ops: ReferenceOps) -> None:
    """Let torch.compile fuse what `ops` computes row by row, unless it has kernels of its own.

    The compiler settles the order of sums for each number of rows that it meets, so that bits may
    depend on it.
    """
    for name in ROW_OPS:
        if getattr(type(ops), name) is getattr(ReferenceOps, name):
            setattr(ops, name, torch.compile(getattr(ops, name), dynamic=True))


def choose_experts(scores: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """The `top_k` highest of `scores` [T, experts] float32: ids int64 and shares, [T, top_k] each.

    Of equal scores the lower expert's comes first. Shares are a softmax over all experts, or with
    `normalise` over the chosen ones.
    """
    ranked, ids = scores.sort(dim=-1, descending=True, stable=True)
    exponents = torch.exp(ranked - ranked[:, :1])
    among = exponents[:, :top_k] if normalise else exponents
    return ids[:, :top_k], exponents[:, :top_k] / among.sum(dim=-1, keepdim=True)


def _padded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Products of one shape, so that a device takes one kernel for them, and one order of sums."""
    parts = x.split(DEVICE_TILE)
    padded = [F.pad(part, (0, 0, 0, DEVICE_TILE - len(part))) for part in parts]
    return torch.cat([F.linear(part, weight) for part in padded])[: len(x)]


def _linear_in_tiles(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.shape[0]
    results = []
    start = 0
    while start < rows:
        tile = _tile_for(rows - start, weight)
        part = x[start : start + tile]
        if len(part) < tile:
            part = F.pad(part, (0, 0, 0, tile - len(part)))
        results.append(F.linear(part, weight, bias)[: rows - start])
        start += tile
    if len(results) == 1:
        return results[0]
    return torch.cat(results) if results else x.new_empty(0, weight.shape[0])


def _tile_for(rows: int, weight: Tensor) -> int:
    """How many of `rows` to multiply next: as many as give the bits of LINEAR_TILE."""
    if rows < LINEAR_TILE:
        fitting = (tile for tile in SMALL_TILES if tile >= rows and _same_bits(tile, weight))
    else:
        fitting = (tile for tile in LARGE_TILES if tile <= rows and _same_bits(tile, weight))
    return next(fitting, LINEAR_TILE)


def _same_bits(tile: int, weight: Tensor) -> bool:
    """Whether rows come out the same in products of `tile` rows and of LINEAR_TILE.

    Tried out once for each shape of weight and number of threads: they choose the kernel.
    """
    key = (tile, weight.shape, torch.get_num_threads())
    if key not in _seen:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(max(tile, LINEAR_TILE), weight.shape[1], generator=generator)
        law = [F.linear(part, weight) for part in x.split(LINEAR_TILE)]
        tried = [F.linear(part, weight) for part in x.split(tile)]
        _seen[key] = torch.equal(torch.cat(law), torch.cat(tried))
    return _seen[key]


_seen: dict[tuple[int, torch.Size, int], bool] = {}


def _gelu(x: Tensor, approximate: bool) -> Tensor:
    if approximate:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
