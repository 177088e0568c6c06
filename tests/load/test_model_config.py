"""config.json and GGUF metadata, against what transformers makes of the same files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers

from pellucid.errors import ModelError
from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.models.config import ModelConfig, RopeScaling
from tests.tiny_models import ARCHITECTURES, ROPE, make_hf, write_gguf


def parsed(path: Path) -> ModelConfig:
    return load_config(ModelFiles("gguf" if path.is_file() else "hf", path, path.name))


def written(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# ---- every architecture


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_saved_config_is_read_as_transformers_reads_it(arch: str, tmp_path: Path) -> None:
    model = make_hf(arch, tmp_path)
    want, got = model.config, parsed(tmp_path)
    assert got.architecture == arch
    assert got.vocab_size == want.vocab_size
    assert got.hidden_size == want.hidden_size
    assert got.num_layers == want.num_hidden_layers
    assert got.num_heads == want.num_attention_heads
    assert got.num_kv_heads == getattr(want, "num_key_value_heads", 4)
    assert got.max_position == want.max_position_embeddings
    assert got.tie_embeddings == want.tie_word_embeddings
    assert got.bos_token_id == 1
    assert got.eos_token_ids == (2,)
    assert got.rope_scaling is None
    if arch == "gpt2":
        assert (got.head_dim, got.intermediate_size, got.norm_eps) == (16, 96, 1e-5)
        return
    assert got.head_dim == (getattr(want, "head_dim", None) or 16)
    assert got.intermediate_size == want.intermediate_size
    assert got.norm_eps == want.rms_norm_eps
    attention = model.model.layers[0].self_attn
    assert got.scale == pytest.approx(attention.scaling)
    assert got.qk_norm == hasattr(attention, "q_norm")
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers]
    if arch in ("mistral", "phi3"):  # there the window belongs to the whole model
        windows = [want.sliding_window] * want.num_hidden_layers
    assert [got.window(layer) for layer in range(got.num_layers)] == windows


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gguf_describes_the_same_model(arch: str, tmp_path: Path) -> None:
    make_hf(arch, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    want, got = parsed(tmp_path), parsed(tmp_path / "m.gguf")
    changes: dict[str, Any] = {"norm_eps": want.norm_eps}  # float32 in the file
    assert got.norm_eps == pytest.approx(want.norm_eps)
    assert got.scale == pytest.approx(want.scale)
    changes["attention_scale"] = want.attention_scale
    if arch == "mistral":  # GGUF has no architecture and no window for it
        changes |= {"architecture": "mistral", "sliding_window": 8}
    if arch == "mixtral":  # nor an architecture for this
        changes["architecture"] = "mixtral"
    assert dataclasses.replace(got, **changes) == want


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_qwen_slides_in_its_upper_layers_only(arch: str, tmp_path: Path) -> None:
    make_hf(arch, tmp_path, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert [parsed(tmp_path).window(i) for i in range(3)] == [None, None, 8]
    config = json.loads((tmp_path / "config.json").read_text())
    del config["layer_types"]  # as older files do
    assert parsed(written(tmp_path / "old", **config)).sliding_layers == (False, False, True)
    config["use_sliding_window"] = False
    assert parsed(written(tmp_path / "off", **config)).sliding_window is None


def test_gemma3_text_part_of_a_sparse_multimodal_config(tmp_path: Path) -> None:
    """Published Gemma 3 configs leave most keys to their class's defaults."""
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "num_attention_heads": 16},
    }
    got = parsed(written(tmp_path, **config))
    want = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    assert (got.num_heads, got.num_kv_heads) == (want.num_attention_heads, want.num_key_value_heads)
    assert (got.head_dim, got.vocab_size) == (want.head_dim, want.vocab_size)
    assert got.max_position == want.max_position_embeddings
    assert [got.window(i) is not None for i in range(34)] == [
        kind == "sliding_attention" for kind in want.layer_types
    ]
    assert got.rope_theta == want.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert got.rope_theta_local == want.rope_parameters["sliding_attention"]["rope_theta"] == 1e4
    assert got.rope_scaling == RopeScaling("linear", factor=8.0)
    assert got.eos_token_ids == (1, 106)
    assert got.tie_embeddings


# ---- rotary settings


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
def test_old_and_new_spelling_of_rope_agree(kind: str, tmp_path: Path) -> None:
    rope = dict(ROPE[kind])
    new = parsed(written(tmp_path / "new", **LLAMA, rope_parameters=rope))
    theta = rope.pop("rope_theta")
    old = parsed(written(tmp_path / "old", **LLAMA, rope_theta=theta, rope_scaling=rope))
    rope["type"] = rope.pop("rope_type")
    older = parsed(written(tmp_path / "older", **LLAMA, rope_theta=theta, rope_scaling=rope))
    assert new == old == older
    assert new.rope_theta == theta
    assert new.rope_scaling is not None
    assert new.rope_scaling.kind == kind
    assert new.rope_scaling.factor == rope["factor"]
    assert new.rope_scaling.original_max_position == {"linear": 0, "dynamic": 128}.get(kind, 32)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_phi3_longrope_under_its_three_names(kind: str, tmp_path: Path) -> None:
    rope = {"type": kind, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    config |= {"original_max_position_embeddings": 32, "rope_scaling": rope}
    assert parsed(written(tmp_path, **config)).rope_scaling == RopeScaling(
        "longrope",
        factor=4.0,
        original_max_position=32,
        short_factor=(1.0,) * 8,
        long_factor=(2.0,) * 8,
    )


def test_longrope_factors_from_gguf_tensors(tmp_path: Path) -> None:
    model = make_hf("phi3", tmp_path, rope_parameters=ROPE["longrope"])
    write_gguf(tmp_path, tmp_path / "m.gguf")
    want, got = parsed(tmp_path).rope_scaling, parsed(tmp_path / "m.gguf").rope_scaling
    assert want is not None
    assert got is not None
    assert got.short_factor == pytest.approx(want.short_factor)
    assert got.long_factor == pytest.approx(want.long_factor)
    assert (got.factor, got.original_max_position) == (want.factor, want.original_max_position)
    assert got.attention_factor == pytest.approx(model.model.rotary_emb.attention_scaling)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling_from_gguf(kind: str, tmp_path: Path) -> None:
    model = make_hf("qwen2", tmp_path, rope_parameters=ROPE[kind])
    write_gguf(tmp_path, tmp_path / "m.gguf")
    want, got = parsed(tmp_path), parsed(tmp_path / "m.gguf")
    assert got.max_position == want.max_position
    assert got.rope_scaling is not None
    assert want.rope_scaling is not None
    factor = got.rope_scaling.attention_factor
    if kind == "yarn":
        assert factor == pytest.approx(model.model.rotary_emb.attention_scaling)
    assert dataclasses.replace(got.rope_scaling, attention_factor=None) == want.rope_scaling


def test_yarn_stretches_the_context(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert parsed(written(tmp_path, **LLAMA, rope_scaling=rope)).max_position == 512


# ---- end of sequence


def test_generation_config_decides_what_ends_an_answer(tmp_path: Path) -> None:
    folder = written(tmp_path, **LLAMA)
    assert parsed(folder).eos_token_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 5, 96]}')
    assert parsed(folder).eos_token_ids == (5, 7)  # 96 is beyond the vocabulary


def test_gguf_end_tokens_by_id_and_by_text(tmp_path: Path) -> None:
    make_hf("llama", tmp_path)
    write_gguf(
        tmp_path,
        tmp_path / "m.gguf",
        metadata={
            "tokenizer.ggml.eot_token_id": 5,
            "tokenizer.ggml.tokens": ["a", "b", "c", "<|im_end|>", "<end_of_turn>", "d"],
            "tokenizer.ggml.token_type": [1, 1, 1, 3, 1, 1],
        },
    )
    # 4 has the text of an end of turn but is a normal token.
    assert parsed(tmp_path / "m.gguf").eos_token_ids == (2, 3, 5)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "DeepseekV3ForCausalLM.*supported are"),
        ({"architectures": ["OwnModel"], "auto_map": {}}, "never run"),
        ({"architectures": None}, "architecture.*not supported"),
        ({"num_local_experts": 8}, "num_local_experts is set, but experts in this architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*GGUF"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": -64}, "hidden_size must be an integer from 1 to .*, not -64"),
        ({"hidden_size": 64.0}, "hidden_size must be an integer"),
        ({"hidden_size": 1 << 40}, "hidden_size must be an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 15}, "15 rotated dimensions"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
        ({"hidden_act": "relu"}, "hidden_act must be one of"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": "2"}, "eos_token_id must be a token id"),
        ({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, "rope type 'mrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor must be a number"),
        ({"rope_scaling": ["linear"]}, "rope_scaling must be an object"),
        ({"rope_scaling": {**ROPE["llama3"], "high_freq_factor": 1.0}}, "above low_freq_factor"),
        ({"rope_scaling": {**ROPE["longrope"], "long_factor": [1.0] * 7}}, "7 factors for 8"),
        ({"rope_scaling": {**ROPE["longrope"], "long_factor": [0] * 8}}, "numbers above 0"),
        ({"rope_theta": 0.5}, "rope_theta must be a number"),
    ],
)
def test_bad_config_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parsed(written(tmp_path, **{**LLAMA, **change}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": "\ud800"'])
def test_config_that_is_not_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ModelError, match=r"config\.json"):
        parsed(tmp_path)


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        parsed(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported"),
        ({"llama.expert_count": 8}, "expert_used_count is missing"),
        ({"split.count": 3}, "split model"),
        ({"llama.attention.head_count": 0}, "head_count must be an integer from 1"),
        ({"llama.attention.head_count": [4, 4, 4]}, "head_count must be an integer"),
        ({"llama.attention.value_length": 8}, "different head sizes"),
        ({"llama.rope.scaling.type": "magic"}, "rope.scaling.type must be"),
        ({"llama.rope.dimension_count": 8}, "dimension_count must be the size of a head, 16"),
        ({"tokenizer.ggml.eos_token_id": 96}, "eos_token_id must be an integer from 0 to 95"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base must be a number"),
    ],
)
def test_bad_metadata_is_refused_by_name(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_hf("llama", tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(ModelError, match=message) as caught:
        parsed(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


WEIRD = [None, True, -1, 0, 1 << 70, 1.5, float("nan"), 1e300, "", "x", [], [[]], [{}], {}]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_value_anywhere_is_read_or_refused(arch: str, tmp_path: Path) -> None:
    """Whatever stands behind a key: a config or a ModelError, never another exception."""
    rope = ROPE["longrope"] if arch == "phi3" else ROPE["yarn"]
    extra = {} if arch in ("gpt2", "gemma3") else {"rope_parameters": dict(rope)}
    make_hf(arch, tmp_path, **extra)
    config = json.loads((tmp_path / "config.json").read_text())
    refused = 0
    for section in (config, config.get("rope_parameters", {})):
        for key, original in list(section.items()):
            for weird in WEIRD:
                section[key] = weird
                refused += _is_refused(written(tmp_path, **config))
            section[key] = original
    assert refused > 50
    assert not _is_refused(written(tmp_path, **config))


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gemma3", "phi3", "gpt2", "qwen2moe"])
def test_any_metadata_anywhere_is_read_or_refused(arch: str, tmp_path: Path) -> None:
    extra = {"rope_parameters": dict(ROPE["longrope"])} if arch == "phi3" else {}
    make_hf(arch, tmp_path, **extra)
    write_gguf(
        tmp_path,
        tmp_path / "m.gguf",
        metadata={
            f"{arch}.attention.sliding_window_pattern": [True] * 7,
            f"{arch}.rope.scaling.type": "yarn",
            f"{arch}.rope.scaling.factor": 2.0,
            "tokenizer.ggml.tokens": ["a", "b", "c"],
            "tokenizer.ggml.token_type": [3, 3, 3],
        },
    )
    files = ModelFiles("gguf", tmp_path / "m.gguf", "m")
    metadata = files.gguf.metadata
    refused = 0
    for key, original in list(metadata.items()):
        for weird in WEIRD:
            metadata[key] = weird
            refused += _is_refused(files)
        metadata[key] = original
    assert refused > 50
    assert not _is_refused(files)


def _is_refused(model: Path | ModelFiles) -> bool:
    try:
        if isinstance(model, Path):
            parsed(model)
        else:
            load_config(model)
    except ModelError:
        return True
    return False


def test_gguf_without_an_embedding(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="token_embd"):
        parsed(tmp_path / "m.gguf")
