from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.interface import IntegerMatrix, Matrix, Weight
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.registry import build_model, random_weights
from tests.models.stepping import Stepper, logits, random_tokens

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture="qwen2",
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=20,
    max_position=32,
    attention_bias=True,
)


class Recorder:
    """Passes weights on, and notes what was asked for."""

    def __init__(self, config: ModelConfig, replaced: dict[str, Tensor] | None = None) -> None:
        self.inner = random_weights(config, seed=3)
        self.replaced = replaced or {}
        self.asked: list[str] = []

    def names(self) -> list[str]:
        return self.inner.names()

    def get(self, name: str, dtype: torch.dtype) -> Tensor:
        self.asked.append(name)
        found = self.replaced.get(name)
        return self.inner.get(name, dtype) if found is None else found

    def integers(self, name: str) -> None:
        self.inner.integers(name)


def build(config: ModelConfig, source: Recorder) -> Decoder:
    model = build_model(config, source, ReferenceOps(), torch.float32, CPU)
    assert isinstance(model, Decoder)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_asked_for_once(tied: bool) -> None:
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, qk_norm=True, post_norms=True)
    source = Recorder(config)
    build(config, source)
    assert sorted(source.asked) == sorted(source.names())


def test_projections_are_stacked_in_order() -> None:
    source = Recorder(CONFIG)
    attention = build(CONFIG, source).layers[1].attention
    for kind, stacked in (("weight", attention.qkv.weight), ("bias", attention.qkv.bias)):
        parts = [
            source.inner.get(f"model.layers.1.self_attn.{part}_proj.{kind}", torch.float32)
            for part in "qkv"
        ]
        assert torch.equal(stacked, torch.cat(parts))


def test_wrong_shape_is_named() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=rf"{name} has shape \(3, 4\), the model needs \(20, 16\)"):
        build(CONFIG, Recorder(CONFIG, {name: torch.zeros(3, 4)}))


def test_unknown_architecture_is_refused() -> None:
    config = dataclasses.replace(CONFIG, architecture="abacus")
    with pytest.raises(ModelError, match="'abacus' is not supported"):
        build(config, Recorder(CONFIG))


def test_random_weights_are_those_of_their_seed() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    first, again, other = (
        random_weights(CONFIG, seed).get(name, torch.float32) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_step_without_tokens() -> None:
    model = build(CONFIG, Recorder(CONFIG))
    stepper = Stepper(model, [random_tokens(3, 40)], torch.float32)
    hidden = model.forward(torch.empty(0, dtype=torch.int64), stepper.pool.inputs([]), stepper.kv)
    assert model.logits(hidden).shape == (0, 40)


def test_softcap_bends_the_logits() -> None:
    config = dataclasses.replace(CONFIG, logits_softcap=0.5)
    tokens = random_tokens(6, 40)
    raw = logits(build(CONFIG, Recorder(CONFIG)), tokens)
    capped = logits(build(config, Recorder(config)), tokens)
    torch.testing.assert_close(capped, 0.5 * torch.tanh(raw / 0.5))


class Damaged:
    """A source whose matrices have scales that are not numbers."""

    def __init__(self) -> None:
        self.names = random_weights(CONFIG).names
        self.get = random_weights(CONFIG).get

    def integers(self, name: str) -> Iterator[IntegerMatrix]:
        raise ValueError("a scale is not a number")


def test_matrices_that_cannot_be_packed_are_named() -> None:
    with pytest.raises(ModelError, match=r"embed_tokens\.weight: a scale is not a number"):
        build_model(CONFIG, Damaged(), PackingOps(), torch.float32, CPU)


class PackingOps(ReferenceOps):
    """Ops that want integers."""

    def pack(self, parts: Sequence[Matrix], dtype: torch.dtype, device: torch.device) -> Weight:
        return [part.integers() for part in parts]
