"""Models through the native kernels against the same models through the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.kernels import native
from pellucid.kernels.interface import KVLayer, allocate_kv
from pellucid.kernels.native import NativeOps
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.load.quantized import Scheme, quantized
from pellucid.load.weights import open_weights
from pellucid.models.base import Model
from pellucid.models.registry import build_model
from tests.kernels.paged import Pool
from tests.models.stepping import logits, random_tokens
from tests.tiny_models import ARCHITECTURES, make_hf, write_gguf

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    native.obstacle(CPU) is not None, reason="the C++ part is not built"
)

VOCAB = 96
LENGTH = 70
BLOCK_SIZE = 4
# A number on the boundary between two int8 may fall to either side, which moves what follows. The
# models are random and amplify it; unrounded activations are 0.04 to 0.05 away.
ROUNDING = 0.02


def load(
    path: Path,
    ops: ReferenceOps,
    scheme: Scheme = "none",
    dtype: str = "float32",
    max_lora_rank: int | None = None,
) -> Model:
    files = ModelFiles("gguf" if path.suffix == ".gguf" else "hf", path, path.name)
    config = load_config(files)
    weights = quantized(open_weights(files, config), scheme)
    numbers = getattr(torch, dtype)
    model = build_model(config, weights, ops, numbers, CPU, max_lora_rank=max_lora_rank)
    weights.close()
    return model


class RoundedActivations(ReferenceOps):
    """The reference, with the input of every product rounded as native kernels round it."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        groups = x.unflatten(-1, (-1, 32))
        scales = groups.abs().amax(-1, keepdim=True) / 127
        return super().linear((torch.round(groups / scales) * scales).flatten(1), weight, bias)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        if (
            len(weight) < VOCAB
        ):  # a router: its weights are float32, and what it reads is not rounded
            return super().linear(x.float(), weight)
        return super().logits(x, weight)


class Replay:
    """A recorded model over a pool; sequences grow by the chunks they are given."""

    def __init__(
        self, model: Model, sequences: list[list[int]], kv_dtype: torch.dtype = torch.float32
    ) -> None:
        config = model.config
        blocks = 1 + sum(-(-len(tokens) // BLOCK_SIZE) for tokens in sequences)
        shape = (config.num_layers, blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        kv: list[KVLayer] = allocate_kv(*shape, kv_dtype, CPU)
        assert isinstance(model.ops, NativeOps)
        self.program = model.ops.record(
            lambda ids, inputs: model.logits(model.forward(ids, inputs, kv)), max_rows=256
        )
        self.program.poison()
        self.team = native.thread_team(2)
        self.vocab = config.vocab_size
        self.sequences = sequences
        self.adapters: Tensor | None = None  # of the next step's rows
        self.done = [0] * len(sequences)
        self.pool = Pool(BLOCK_SIZE, blocks)
        for tokens in sequences:
            self.pool.add_sequence(len(tokens))

    def step(self, counts: dict[int, int]) -> list[Tensor]:
        """Feed `counts[s]` more tokens of each sequence s; their logits [count, vocab]."""
        chunks = [(s, self.done[s], count) for s, count in counts.items()]
        tokens = [t for s, start, n in chunks for t in self.sequences[s][start : start + n]]
        inputs = self.pool.inputs(chunks)
        out = torch.full((len(tokens), self.vocab), float("nan"))
        self.program.run(
            self.team,
            torch.tensor(tokens),
            inputs.positions,
            inputs.slot_mapping,
            inputs.block_tables,
            inputs.query_start,
            inputs.seq_lens,
            torch.arange(len(tokens)),
            out,
            *(() if self.adapters is None else (self.adapters,)),
        )
        for s, _, count in chunks:
            self.done[s] += count
        return list(torch.split(out, list(counts.values())))


def replayed(model: Model, tokens: list[int], **settings: Any) -> Tensor:
    return Replay(model, [tokens], **settings).step({0: len(tokens)})[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    for arch in ARCHITECTURES:
        make_hf(arch, root / arch)
    return {arch: root / arch for arch in ARCHITECTURES}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float_weights_give_the_references_logits(arch: str, folders: dict[str, Path]) -> None:
    tokens = random_tokens(LENGTH, VOCAB)
    found = replayed(load(folders[arch], NativeOps()), tokens)
    expected = logits(load(folders[arch], ReferenceOps()), tokens)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_chunks_and_company_change_no_bit(arch: str, folders: dict[str, Path]) -> None:
    model = load(folders[arch], NativeOps(), "int8")
    sequences = [random_tokens(LENGTH, VOCAB, seed) for seed in range(3)]
    alone = [replayed(model, tokens) for tokens in sequences]
    together = Replay(model, sequences)
    parts: list[list[Tensor]] = [[], [], []]
    for counts in ({0: 7, 1: 1}, {2: 33, 0: 1, 1: 5}, {1: 64, 0: 62}, {2: 37}):
        for s, part in zip(counts, together.step(counts), strict=True):
            parts[s].append(part)
    for s in range(3):
        assert torch.equal(torch.cat(parts[s]), alone[s])


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_rounded_weights_are_the_same_for_all_kernels(
    scheme: Scheme, folders: dict[str, Path]
) -> None:
    tokens = random_tokens(LENGTH, VOCAB)
    found = replayed(load(folders["llama"], NativeOps(), scheme), tokens)
    expected = logits(load(folders["llama"], RoundedActivations(), scheme), tokens)
    assert relative_error(found, expected) < ROUNDING


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_files_are_close_to_their_exact_values(
    quant: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(folders["qwen2"], path, gguf.GGMLQuantizationType[quant])
    tokens = random_tokens(LENGTH, VOCAB)
    model = load(path, NativeOps())
    expected = logits(load(path, RoundedActivations()), tokens)
    assert relative_error(replayed(model, tokens), expected) < ROUNDING
    kinds = {piece.format.kind for piece in model.lm_head.weight.pieces}
    assert kinds == {"int4" if quant.startswith("Q4") else "int8"}


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0"])
def test_quantised_experts_are_close_to_their_exact_values(quant: str, tmp_path: Path) -> None:
    # All are chosen: a score moved by rounding would choose another.
    make_hf("qwen2moe", tmp_path, num_experts=3, num_experts_per_tok=3)
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path, path, gguf.GGMLQuantizationType[quant])
    tokens = random_tokens(LENGTH, VOCAB)
    model = load(path, NativeOps())
    assert (
        relative_error(replayed(model, tokens), logits(load(path, RoundedActivations()), tokens))
        < ROUNDING
    )
    experts = model.layers[0].mlp.experts
    kinds = {w.table.format.kind for part in (experts.gate, experts.up, experts.down) for w in part}
    assert kinds == {"int4" if quant == "Q4_0" else "int8"}


def test_narrow_pools_and_weights_are_close(folders: dict[str, Path]) -> None:
    tokens = random_tokens(LENGTH, VOCAB)
    expected = logits(load(folders["qwen3"], ReferenceOps()), tokens)
    model = load(folders["qwen3"], NativeOps(), dtype="bfloat16")
    assert relative_error(replayed(model, tokens), expected) < 0.05
    exact = load(folders["qwen3"], NativeOps())
    errors = {
        kv_dtype: relative_error(replayed(exact, tokens, kv_dtype=kv_dtype), expected)
        for kv_dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8)
    }
    assert errors[torch.float32] < errors[torch.float16] < errors[torch.bfloat16] / 4 < 0.005
    assert errors[torch.float16] < errors[torch.int8] < 0.03


def test_a_tensor_of_nowhere_is_refused() -> None:
    ops = NativeOps()
    with pytest.raises(ValueError, match="not columns of an op's result"):
        ops.record(lambda ids, inputs: ops.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), 1)
    with pytest.raises(RuntimeError, match="only record"):
        ops.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6)


def test_columns_are_found_through_views(folders: dict[str, Path]) -> None:
    ops = NativeOps()
    weight = np.ones((96, 64), np.float32)

    def forward(ids: Tensor, inputs: Any) -> Tensor:
        from pellucid import _native
        from pellucid.kernels.native_weights import NativeWeight

        table = NativeWeight((_native.pack_float(weight),))
        x = ops.embedding(ids, table)
        left, right = x.chunk(2, dim=-1)
        heads = right.unflatten(1, (2, 16))
        assert [ops.tape.columns(t).begin for t in (x, left, right, heads, heads[:, 1])] == [
            *(0, 0, 32, 32, 48)
        ]
        with pytest.raises(ValueError, match="not columns"):
            ops.tape.columns(x[:, ::2])
        with pytest.raises(ValueError, match="not columns"):
            ops.tape.columns(x.clone())
        return ops.linear(x, table)

    ops.record(forward, max_rows=4)
