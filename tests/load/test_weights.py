"""Canonical weights: the same from a GGUF file as from safetensors, and those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.errors import ModelError
from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.load.weights import Weights, open_weights
from tests.tiny_models import ARCHITECTURES, ROPE, make_hf, write_gguf


def opened(path: Path) -> Weights:
    files = ModelFiles("gguf" if path.is_file() else "hf", path, path.name)
    return open_weights(files, load_config(files))


def expected(arch: str, model: Any) -> dict[str, torch.Tensor]:
    """Canonical weights worked out from the transformers model, in other words than ours."""
    state = {k: v.detach() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    out = {}
    for name, weight in state.items():
        stem, _, kind = name.rpartition(".")
        if arch == "gpt2" and stem.endswith(("c_attn", "c_proj", "c_fc")) and kind == "weight":
            weight = weight.t()
        if "gemma" in arch and stem.endswith("norm"):
            weight = weight + 1
        if stem.endswith(("c_attn", "qkv_proj")):
            head = weight.shape[0] // (model.config.num_attention_heads + 2 * kv_heads(model))
            sizes = [head * model.config.num_attention_heads] + 2 * [head * kv_heads(model)]
            for letter, part in zip("qkv", weight.split(sizes), strict=True):
                out[f"{stem.rpartition('.')[0]}.{letter}_proj.{kind}"] = part
        elif name.endswith("experts.gate_up_proj"):
            for e, expert in enumerate(weight):
                for part_name, part in zip(("gate", "up"), expert.chunk(2), strict=True):
                    out[f"{stem}.{e}.{part_name}_proj.weight"] = part
        elif name.endswith("experts.down_proj"):
            for e, expert in enumerate(weight):
                out[f"{stem}.{e}.down_proj.weight"] = expert
        elif stem.endswith("gate_up_proj"):
            for part_name, part in zip(("gate", "up"), weight.chunk(2), strict=True):
                out[f"{stem.rpartition('.')[0]}.{part_name}_proj.{kind}"] = part
        else:
            for old, new in (
                ("attn.c_proj", "attn.o_proj"),
                ("mlp.c_fc", "mlp.up_proj"),
                ("mlp.c_proj", "mlp.down_proj"),
            ):
                stem = stem.replace(old, new)
            out[f"{stem}.{kind}"] = weight
    return out


def kv_heads(model: Any) -> int:
    return getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)


@pytest.mark.parametrize(
    ("arch", "tied"),
    [(a, True) for a in ARCHITECTURES] + [(a, False) for a in ARCHITECTURES if "gemma" not in a],
)
def test_weights_equal_those_of_transformers(arch: str, tied: bool, tmp_path: Path) -> None:
    model = make_hf(arch, tmp_path, tie_word_embeddings=tied)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    wanted = expected(arch, model)
    for source in (tmp_path, tmp_path / "m.gguf"):
        weights = opened(source)
        assert set(weights.names()) == set(wanted)
        for name, tensor in wanted.items():
            got = weights.get(name)
            assert got.is_contiguous()
            assert weights.shape(name) == tuple(tensor.shape)
            torch.testing.assert_close(got, tensor, rtol=0, atol=0, msg=f"{source.name}: {name}")


def test_llama_biases_are_reordered_with_their_rows(tmp_path: Path) -> None:
    model = make_hf("llama", tmp_path, attention_bias=True, mlp_bias=True)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    weights, wanted = opened(tmp_path / "m.gguf"), expected("llama", model)
    assert set(weights.names()) == set(wanted)
    assert all(torch.equal(weights.get(name), wanted[name]) for name in wanted)


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_raw_rows_decode_to_the_dense_weight(arch: str, tmp_path: Path) -> None:
    """For q (reordered), qkv and gate_up (split) as much as for what is stored as it is."""
    make_hf(arch, tmp_path)
    kind = gguf.GGMLQuantizationType.Q4_1
    write_gguf(tmp_path, tmp_path / "m.gguf", quant=kind)
    weights = opened(tmp_path / "m.gguf")
    seen = 0
    for name in weights.names():
        raw = weights.raw(name)
        if raw is None:
            assert len(weights.shape(name)) == 1
            continue
        seen += 1
        assert raw.ggml_type == "Q4_1"
        assert raw.shape == weights.shape(name)
        dense = gguf.quants.dequantize(np.ascontiguousarray(raw.data), kind)
        np.testing.assert_array_equal(dense, weights.get(name).numpy())
    assert seen == 2 + 7 * 3


def test_quantised_rows_stand_in_canonical_order(tmp_path: Path) -> None:
    model = make_hf("llama", tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", quant=gguf.GGMLQuantizationType.Q8_0)
    weights = opened(tmp_path / "m.gguf")
    for name, tensor in expected("llama", model).items():
        torch.testing.assert_close(weights.get(name), tensor, rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_get_converts_to_the_type_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_hf("qwen2", tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    name = "model.layers.1.mlp.down_proj.weight"
    for source in (tmp_path, tmp_path / "m.gguf"):
        got = opened(source).get(name, dtype)
        assert got.dtype == dtype
        assert torch.equal(got, model.state_dict()[name].to(dtype))


def test_a_tensor_outlives_its_file(tmp_path: Path) -> None:
    make_hf("llama", tmp_path)
    weights = opened(tmp_path)
    got = weights.get("model.norm.weight")
    copy = got.clone()
    weights.close()
    size = (tmp_path / "model.safetensors").stat().st_size
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(got, copy)


def test_llama3_factors_are_a_weight_of_their_own(tmp_path: Path) -> None:
    model = make_hf("llama", tmp_path, rope_parameters=ROPE["llama3"])
    write_gguf(tmp_path, tmp_path / "m.gguf")
    weights = opened(tmp_path / "m.gguf")
    plain = 1.0 / 5e5 ** (torch.arange(0, 16, 2).float() / 16)
    scaled = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(plain / weights.get("rope_freqs.weight"), scaled)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    model = make_hf("llama", tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    weights = opened(tmp_path)
    for name, tensor in expected("llama", model).items():
        assert torch.equal(weights.get(name), tensor)


# ---- what does not fit is refused


def rewritten(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    make_hf("llama", tmp_path)
    rewritten(tmp_path, lambda state: state.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight is missing"):
        opened(tmp_path)


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    make_hf("phi3", tmp_path)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    rewritten(tmp_path, lambda state: state.update({name: torch.zeros(129, 64)}))
    with pytest.raises(ModelError, match=r"qkv_proj\.weight has shape \[129, 64\].*\[128, 64\]"):
        opened(tmp_path)


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    make_hf("llama", tmp_path)
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    rewritten(tmp_path, lambda state: state.update({name: torch.zeros(2, 2)}))
    with pytest.raises(ModelError, match=r"experts.*not supported"):
        opened(tmp_path)


def test_quantised_type_in_safetensors_is_refused(tmp_path: Path) -> None:
    make_hf("llama", tmp_path)
    rewritten(
        tmp_path,
        lambda state: state.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}),
    )
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*type I8"):
        opened(tmp_path)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_checkpoint_of_the_bare_base_model(arch: str, tmp_path: Path) -> None:
    """Its names lack the root, and GPT-2's carries buffers that are no weights."""
    model = make_hf(arch, tmp_path, tie_word_embeddings=True)
    root = "transformer." if arch == "gpt2" else "model."

    def strip(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[name.removeprefix(root)] = state.pop(name)
        state["h.0.attn.bias" if arch == "gpt2" else "layers.0.self_attn.rotary_emb.inv_freq"] = (
            torch.ones(1)
        )

    rewritten(tmp_path, strip)
    weights, wanted = opened(tmp_path), expected(arch, model)
    assert set(weights.names()) == set(wanted)
    assert all(torch.equal(weights.get(name), wanted[name]) for name in wanted)


def test_text_part_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    model = make_hf("gemma3", tmp_path)

    def wrap(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state["language_model." + name] = state.pop(name)
        state["vision_tower.vision_model.embeddings.weight"] = torch.ones(2, 2)
        state["multi_modal_projector.norm.weight"] = torch.ones(2)

    rewritten(tmp_path, wrap)
    weights, wanted = opened(tmp_path), expected("gemma3", model)
    assert set(weights.names()) == set(wanted)
    assert all(torch.equal(weights.get(name), wanted[name]) for name in wanted)


def test_gguf_with_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    make_hf("llama", tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"blk.1.ffn_up", b"blk.1.ffn_xy"))
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight is missing"):
        opened(tmp_path / "m.gguf")
    make_hf("qwen3", tmp_path / "q")
    write_gguf(tmp_path / "q", tmp_path / "q.gguf")
    data = (tmp_path / "q.gguf").read_bytes()
    (tmp_path / "q.gguf").write_bytes(data.replace(b"qwen3", b"qwen2"))
    with pytest.raises(ModelError, match=r"blk\.0\.attn_k_norm\.weight.*not supported"):
        opened(tmp_path / "q.gguf")


@pytest.mark.model
def test_the_default_model_decodes_as_gguf_does(smollm2_path: Path) -> None:
    weights = opened(smollm2_path)
    assert len(weights.names()) == 272
    reader = {t.name: t for t in gguf.GGUFReader(smollm2_path).tensors}
    down = reader["blk.29.ffn_down.weight"]
    dense = gguf.quants.dequantize(down.data, down.tensor_type)
    assert np.array_equal(weights.get("model.layers.29.mlp.down_proj.weight").numpy(), dense)
    q = reader["blk.3.attn_q.weight"]
    dense = gguf.quants.dequantize(q.data, q.tensor_type)
    # Interleaved to split halves: even rows of a head first, then odd ones.
    heads = dense.reshape(9, 64, 576)
    halves = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(576, 576)
    assert np.array_equal(weights.get("model.layers.3.self_attn.q_proj.weight").numpy(), halves)
