"""What config.json and GGUF metadata say of experts, against transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from pellucid.errors import ModelError
from tests.load.test_model_config import parsed, written
from tests.tiny_models import make_hf, write_gguf

MOE_DEFAULTS = {
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "OlmoeForCausalLM": "olmoe",
}


@pytest.mark.parametrize("name", MOE_DEFAULTS)
def test_what_a_config_with_experts_leaves_out_is_its_classs_default(
    name: str, tmp_path: Path
) -> None:
    stated = {"vocab_size": 96, "hidden_size": 256, "num_hidden_layers": 2}
    stated |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    stated |= (
        {"intermediate_size": 96} if name in ("MixtralForCausalLM", "OlmoeForCausalLM") else {}
    )
    config = {"architectures": [name], "model_type": MOE_DEFAULTS[name], **stated}
    got = parsed(written(tmp_path, **config))
    want = transformers.AutoConfig.from_pretrained(tmp_path)
    assert got.num_experts == want.num_experts
    assert got.experts_per_token == want.num_experts_per_tok
    assert got.expert_size == getattr(want, "moe_intermediate_size", want.intermediate_size)
    assert got.shared_expert_size == getattr(want, "shared_expert_intermediate_size", 0)
    assert got.normalise_experts == getattr(want, "norm_topk_prob", True)
    assert got.attention_bias == getattr(want, "qkv_bias", False)
    assert got.norm_eps == want.rms_norm_eps
    assert got.rope_theta == want.rope_parameters["rope_theta"]
    assert got.max_position == want.max_position_embeddings


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok must be .* 1 to 4, not 5"),
        ("mixtral", {"num_local_experts": 2000}, "num_local_experts must be an integer from 1 to"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is set"),
        ("qwen2moe", {"use_sliding_window": True}, "use_sliding_window .* qwen2moe"),
        ("qwen3moe", {"mlp_only_layers": ["a"]}, "mlp_only_layers must be a list of layers"),
        ("qwen3moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be an integer from 1"),
    ],
)
def test_other_kinds_of_experts_are_refused(
    arch: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_hf(arch, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ModelError, match=message):
        parsed(written(tmp_path, **{**config, **change}))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"olmoe.expert_count": 0}, "expert_count must be an integer from 1"),
        ({"olmoe.expert_used_count": 9}, "expert_used_count must be an integer from 1 to 8"),
        ({"olmoe.expert_gating_func": 2}, "expert_gating_func must be 1"),
        ({"olmoe.expert_group_count": 4}, "groups of experts are not supported"),
        ({"olmoe.expert_weights_scale": 2.5}, "expert_weights_scale must be 1"),
        ({"olmoe.attention.clamp_kqv": 8.0}, "clamp_kqv must be 0"),
    ],
)
def test_other_kinds_of_experts_in_gguf_are_refused(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_hf("olmoe", tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(ModelError, match=message):
        parsed(tmp_path / "m.gguf")
