from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.load.quantized import at_most_4_bits, quantized
from pellucid.load.weights import Weights, open_weights
from pellucid.quant.rounding import join
from tests.device import DEVICE
from tests.tiny_models import make_hf, write_gguf

LAYER = "model.layers.0."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    make_hf("llama", folder)
    files = ModelFiles("hf", folder, "llama")
    return open_weights(files, load_config(files))


def test_none_changes_nothing(plain: Weights) -> None:
    assert quantized(plain, "none") is plain


@pytest.mark.parametrize(("scheme", "bits"), [("int8", 8), ("int4", 4)])
def test_projections_take_the_scheme_and_tables_8_bits(
    plain: Weights, scheme: str, bits: int
) -> None:
    rounded = quantized(plain, scheme)
    assert rounded.names() == plain.names()
    expected = {
        f"{LAYER}self_attn.q_proj.weight": bits,
        f"{LAYER}mlp.down_proj.weight": bits,
        "model.embed_tokens.weight": 8,
        "lm_head.weight": 8,
    }
    for name, its_bits in expected.items():
        chunks = list(rounded.integers(name))
        assert {chunk.bits for chunk in chunks} == {its_bits}
        # Every kernel computes with the same numbers.
        assert torch.equal(rounded.get(name), torch.from_numpy(join(chunks)))
        error = (rounded.get(name) - plain.get(name)).norm() / plain.get(name).norm()
        assert 0 < error < (0.01 if its_bits == 8 else 0.1)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_device_may_round_to_the_same_numbers(plain: Weights, scheme: str) -> None:
    name = f"{LAYER}mlp.down_proj.weight"
    found, expected = quantized(plain, scheme, DEVICE), quantized(plain, scheme)
    assert torch.equal(found.get(name), expected.get(name))


def test_norms_stay_as_they_are(plain: Weights) -> None:
    name = f"{LAYER}input_layernorm.weight"
    rounded = quantized(plain, "int4")
    assert rounded.integers(name) is None
    assert torch.equal(rounded.get(name), plain.get(name))


def test_what_a_file_has_quantised_is_not_quantised_again(plain: Weights, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "hf")
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path / "hf", path, gguf.GGMLQuantizationType.Q5_1)
    files = ModelFiles("gguf", path, "llama")
    weights = open_weights(files, load_config(files))
    name = f"{LAYER}mlp.up_proj.weight"
    assert torch.equal(quantized(weights, "int4").get(name), weights.get(name))
    (chunk,) = quantized(weights, "int4").integers(name)
    assert torch.equal(torch.from_numpy(chunk.dense()), weights.get(name))


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "F16"])
def test_a_draft_model_has_no_more_than_4_bits(tmp_path: Path, kind: str) -> None:
    make_hf("llama", tmp_path / "hf")
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path / "hf", path, gguf.GGMLQuantizationType[kind])
    files = ModelFiles("gguf", path, "llama")
    weights = open_weights(files, load_config(files))
    rounded = at_most_4_bits(weights)
    for name in rounded.names():
        before, after = weights.get(name), rounded.get(name)
        chunks = list(rounded.integers(name) or ())
        if name.endswith("norm.weight"):
            assert chunks == []
        elif "embed" in name or "head" in name:
            assert torch.equal(before, after) == (kind != "F16")
        else:
            assert {chunk.bits for chunk in chunks} == {4}
            assert torch.equal(after, torch.from_numpy(join(chunks)))
            assert torch.equal(before, after) == (kind == "Q4_1")
            assert (before - after).norm() < 0.1 * before.norm()
