"""Adapted models against the peft package, through the reference and the native kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.kernels import native
from pellucid.kernels.native import NativeOps
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.load.lora import read_adapter
from pellucid.load.model_config import load_config
from pellucid.load.weights import open_weights
from pellucid.models.base import Model
from pellucid.models.registry import build_model
from tests.models.stepping import Stepper, random_tokens
from tests.models.test_logits import assert_same, theirs
from tests.models.test_native import Replay
from tests.tiny_adapters import adapter_to_gguf, make_peft
from tests.tiny_models import ARCHITECTURES, make_hf, write_gguf

CPU = torch.device("cpu")
VOCAB = 96
LENGTH = 21
OPS = ("reference", "native") if native.obstacle(CPU) is None else ("reference",)
PATTERNS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": True,
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "rank_pattern": {"v_proj": 7, "layers.1.mlp.up_proj": 2},
    "alpha_pattern": {"self_attn.q_proj": 3, "layers.0.self_attn.v_proj": 11},
    "layers_to_transform": [0, 1],
}


def adaptable(path: Path, ops: str) -> Model:
    files = ModelFiles("gguf" if path.suffix == ".gguf" else "hf", path, path.name)
    config = load_config(files)
    weights = open_weights(files, config)
    backend = NativeOps() if ops == "native" else ReferenceOps()
    model = build_model(config, weights, backend, torch.float32, CPU, max_lora_rank=8)
    weights.close()
    return model


def adapt(model: Model, number: int, path: Path) -> None:
    assert model.adapters is not None
    model.adapters.load(number, read_adapter(path, model.config, 8).updates)


def logits(model: Model, sequences: list[list[int]], numbers: list[int]) -> list[Tensor]:
    """Of whole sequences, fed in one step, each with the adapter of that number; -1 for none."""
    rows = torch.tensor([n for tokens, n in zip(sequences, numbers, strict=True) for _ in tokens])
    counts = {s: len(tokens) for s, tokens in enumerate(sequences)}
    groups = [(n, torch.nonzero(rows == n).flatten()) for n in sorted(set(numbers) - {-1})]
    if isinstance(model.ops, NativeOps):
        if not groups:
            return Replay(model, sequences).step(counts)
        with model.adapted(groups):
            replay = Replay(model, sequences)
        replay.adapters = rows.to(torch.int32)
        return replay.step(counts)
    with model.adapted(groups):
        return Stepper(model, sequences, torch.float32).step(counts)


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("form", ["peft", "gguf"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_equal_pefts(arch: str, form: str, ops: str, tmp_path: Path) -> None:
    make_hf(arch, tmp_path / "hf")
    expected = make_peft(tmp_path / "hf", tmp_path / "adapter")
    path = tmp_path / "adapter"
    if form == "gguf":
        path = tmp_path / "adapter.gguf"
        adapter_to_gguf(tmp_path / "hf", tmp_path / "adapter", path)
    model = adaptable(tmp_path / "hf", ops)
    adapt(model, 0, path)
    tokens = random_tokens(LENGTH, VOCAB)
    assert_same(logits(model, [tokens], [0])[0], theirs(expected, tokens))


@pytest.mark.parametrize("ops", OPS)
def test_a_gguf_model_takes_both_formats(ops: str, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "hf")
    write_gguf(tmp_path / "hf", tmp_path / "model.gguf")
    expected = make_peft(tmp_path / "hf", tmp_path / "adapter")
    adapter_to_gguf(tmp_path / "hf", tmp_path / "adapter", tmp_path / "adapter.gguf")
    model = adaptable(tmp_path / "model.gguf", ops)
    adapt(model, 0, tmp_path / "adapter")
    adapt(model, 1, tmp_path / "adapter.gguf")
    tokens = random_tokens(LENGTH, VOCAB)
    first, second = logits(model, [tokens, tokens], [0, 1])
    assert torch.equal(first, second)
    assert_same(first, theirs(expected, tokens))


@pytest.mark.parametrize("ops", OPS)
def test_patterns_and_layers(ops: str, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "hf")
    expected = make_peft(tmp_path / "hf", tmp_path / "adapter", **PATTERNS)
    model = adaptable(tmp_path / "hf", ops)
    adapt(model, 3, tmp_path / "adapter")
    tokens = random_tokens(LENGTH, VOCAB)
    assert_same(logits(model, [tokens], [3])[0], theirs(expected, tokens))


@pytest.mark.parametrize("ops", OPS)
def test_a_step_mixes_adapters_and_none(ops: str, tmp_path: Path) -> None:
    make_hf("qwen2", tmp_path / "hf")
    make_peft(tmp_path / "hf", tmp_path / "a", seed=1)
    make_peft(tmp_path / "hf", tmp_path / "b", seed=2, r=7, target_modules=["k_proj", "down_proj"])
    model = adaptable(tmp_path / "hf", ops)
    adapt(model, 0, tmp_path / "a")
    adapt(model, 1, tmp_path / "b")
    numbers = [1, -1, 0, 0, -1, 1]
    # The third is longer than the runs that native kernels take at once.
    sequences = [random_tokens(n, VOCAB, n) for n in (5, 17, 70, 1, 33, 2)]
    together = logits(model, sequences, numbers)
    for tokens, number, found in zip(sequences, numbers, together, strict=True):
        assert torch.equal(found, logits(model, [tokens], [number])[0])


@pytest.mark.parametrize("ops", OPS)
def test_an_unloaded_adapter_is_gone_and_its_number_free(ops: str, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "hf")
    make_peft(tmp_path / "hf", tmp_path / "a", seed=1)
    make_peft(tmp_path / "hf", tmp_path / "b", seed=2, target_modules=["q_proj"])
    model = adaptable(tmp_path / "hf", ops)
    tokens = random_tokens(LENGTH, VOCAB)
    plain = logits(model, [tokens], [-1])[0]
    adapt(model, 0, tmp_path / "a")
    first = logits(model, [tokens], [0])[0]
    assert model.adapters is not None
    model.adapters.unload(0)
    assert torch.equal(logits(model, [tokens], [0])[0], plain)
    adapt(model, 0, tmp_path / "b")
    second = logits(model, [tokens], [0])[0]
    adapt(model, 1, tmp_path / "b")
    assert torch.equal(logits(model, [tokens], [1])[0], second)
    assert not torch.equal(first, second)
