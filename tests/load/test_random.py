"""Random models in the shapes of known ones."""

from __future__ import annotations

import pytest
import torch

from pellucid.errors import ConfigError
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.quantized import quantized
from pellucid.load.random import SHAPES, RepeatedNoise, named_shape
from pellucid.models.registry import ARCHITECTURES, build_model
from pellucid.models.shapes import weight_shapes

PARAMETERS = {  # in millions, as their makers give them, embeddings included
    "smollm2-135m": 134.5,
    "qwen3-0.6b": 596,
    "llama3.2-1b": 1236,
    "qwen2.5-7b": 7616,
    "llama3-8b": 8030,
    "qwen3-8b": 8191,
    "olmoe-1b-7b": 6919,
    "qwen3-30b-a3b": 30532,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_size_of_their_models(name: str) -> None:
    config = SHAPES[name]
    assert config.architecture in ARCHITECTURES
    count = sum(torch.Size(shape).numel() for shape in weight_shapes(config).values())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], rel=2e-3)


def test_weights_are_of_order_one_over_the_square_root_and_rows_differ() -> None:
    weights = RepeatedNoise(SHAPES["smollm2-135m"])
    table = weights.get("model.embed_tokens.weight")
    assert table.std() * 576**0.5 == pytest.approx(1.0, rel=0.01)
    assert len(table[:5000, :4].unique(dim=0)) == 5000
    norm = weights.get("model.norm.weight", torch.bfloat16)
    assert norm.dtype == torch.bfloat16
    assert norm.float().mean() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(norm, weights.get("model.norm.weight").bfloat16())


@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
@pytest.mark.parametrize("shape", ["tiny", "tiny-moe"])
def test_a_model_is_built_of_them(scheme: str, shape: str) -> None:
    config = named_shape(shape)
    weights = quantized(RepeatedNoise(config), scheme)
    model = build_model(config, weights, ReferenceOps(), torch.float32, torch.device("cpu"))
    assert model.logits(torch.randn(2, config.hidden_size)).isfinite().all()


def test_an_unknown_shape_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'llama9' is none of tiny, .*llama3-8b") as caught:
        named_shape("llama9")
    assert caught.value.param == "shape"
