"""Every architecture against `transformers`, from tiny random files of both formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.load.weights import open_weights
from pellucid.models.base import Model
from pellucid.models.registry import build_model
from tests.models.stepping import Stepper, logits, random_tokens
from tests.tiny_models import ARCHITECTURES, ROPE, SPARSE, make_hf, write_gguf

CPU = torch.device("cpu")
VOCAB = 96
WINDOW = 8  # of the tiny models that have one


def ours(path: Path, max_model_len: int | None = None, dtype: torch.dtype = torch.float32) -> Model:
    files = ModelFiles("gguf" if path.suffix == ".gguf" else "hf", path, path.name)
    config = load_config(files)
    weights = open_weights(files, config)
    model = build_model(config, weights, ReferenceOps(), dtype, CPU, max_model_len)
    weights.close()
    return model


@torch.inference_mode()
def theirs(model: Any, tokens: list[int]) -> Tensor:
    return model(torch.tensor([tokens])).logits[0]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_equal_transformers(arch: str, form: str, tmp_path: Path) -> None:
    reference = make_hf(arch, tmp_path / "hf")
    path = tmp_path / "hf"
    length = 5 * WINDOW
    if form == "gguf":
        path = tmp_path / "model.gguf"
        write_gguf(tmp_path / "hf", path)
        if arch == "mistral":
            length = WINDOW  # as llama.cpp has it, the file is a llama, without a window
    tokens = random_tokens(length, VOCAB)
    assert_same(logits(ours(path), tokens), theirs(reference, tokens))


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, untied, odd head": ("llama", {"head_dim": 20, "tie_word_embeddings": False}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, erf gelu": ("llama", {"hidden_act": "gelu"}),
    "llama, one kv head": ("llama", {"num_key_value_heads": 1}),
    "qwen2, windows in upper layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "phi3, partial rotation": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "gemma3, its own scale": ("gemma3", {"query_pre_attn_scalar": 50}),
    "mixtral, windows": ("mixtral", {"sliding_window": WINDOW}),
    "qwen3moe, shares of all experts, gelu": (
        "qwen3moe",
        {"norm_topk_prob": False, "hidden_act": "gelu"},
    ),
    "qwen2moe, every expert, without biases": (
        "qwen2moe",
        {"num_experts_per_tok": 6, "qkv_bias": False, "norm_topk_prob": True},
    ),
    "qwen3moe, dense layers too": ("qwen3moe", {"mlp_only_layers": [1]}),
    "qwen2moe, every other layer": ("qwen2moe", {"decoder_sparse_step": 2}),
    "olmoe, one expert of odd size": (
        "olmoe",
        {"num_experts": 1, "num_experts_per_tok": 1, "intermediate_size": 28},
    ),
}


@pytest.mark.parametrize(("arch", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_variants_equal_transformers(arch: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    reference = make_hf(arch, tmp_path, **overrides)
    tokens = random_tokens(5 * WINDOW, VOCAB)
    assert_same(logits(ours(tmp_path), tokens), theirs(reference, tokens))


@pytest.mark.parametrize("arch", SPARSE)
def test_greedy_tokens_equal_transformers(arch: str, tmp_path: Path) -> None:
    reference = make_hf(arch, tmp_path, seed=3)
    model, prompt = ours(tmp_path), random_tokens(7, VOCAB)
    ids = torch.tensor([prompt])
    seen = torch.ones_like(ids)  # or it would take a 0 for padding
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    whole = reference.generate(ids, attention_mask=seen, **settings)[0].tolist()
    stepper = Stepper(model, [prompt], torch.float32, room=12)
    (found,) = stepper.step({0: len(prompt)})
    for _ in range(12):
        stepper.sequences[0].append(int(found[-1].argmax()))
        (found,) = stepper.step({0: 1})
    assert stepper.sequences[0] == whole


@pytest.mark.parametrize("arch", SPARSE)
def test_stacks_of_experts_are_read_as_transformers_keeps_them(arch: str, tmp_path: Path) -> None:
    """A stack for each projection, gate above up: files may have models as they are in memory."""
    reference = make_hf(arch, tmp_path)
    tokens = random_tokens(20, VOCAB)
    expected = logits(ours(tmp_path), tokens)
    state = {name: weight.contiguous() for name, weight in reference.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(logits(ours(tmp_path), tokens), expected)


def test_old_gguf_files_keep_experts_apart(tmp_path: Path) -> None:
    reference = make_hf("mixtral", tmp_path / "hf")
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path / "hf", path, stacked=False)
    tokens = random_tokens(20, VOCAB)
    assert_same(logits(ours(path), tokens), theirs(reference, tokens))


# GGUF has no dynamic scaling.
ROPE_FILES = [(kind, form) for kind in ROPE for form in ("hf", "gguf")]
ROPE_FILES.remove(("dynamic", "gguf"))


@pytest.mark.parametrize("length", [20, 100])
@pytest.mark.parametrize(("kind", "form"), ROPE_FILES)
def test_rope_scalings_equal_transformers(
    kind: str, length: int, form: str, tmp_path: Path
) -> None:
    """Within and beyond the original context, the model being served with just that length."""
    settings = {"max_position_embeddings": 32} if kind == "dynamic" else {}
    reference = make_hf("llama", tmp_path / "hf", rope_parameters=ROPE[kind], **settings)
    path = tmp_path / "hf"
    if form == "gguf":
        path = tmp_path / "model.gguf"
        write_gguf(tmp_path / "hf", path)
    tokens = random_tokens(length, VOCAB)
    assert_same(logits(ours(path, max_model_len=length), tokens), theirs(reference, tokens))


def test_gemma3_scales_full_layers_only(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    reference = make_hf("gemma3", tmp_path, rope_parameters=rope)
    tokens = random_tokens(60, VOCAB)
    assert_same(logits(ours(tmp_path), tokens), theirs(reference, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_half_precision_stays_close(arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    # A score that is rounded across another's would choose another expert, were not all chosen.
    all_experts = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 6}
    make_hf(arch, tmp_path, **(all_experts if arch in SPARSE else {}))
    tokens = random_tokens(30, VOCAB)
    exact = logits(ours(tmp_path), tokens)
    rounded = logits(ours(tmp_path, dtype=dtype), tokens, dtype)
    assert rounded.dtype == torch.float32
    difference = (rounded - exact).norm() / exact.norm()
    assert difference < {torch.bfloat16: 0.05, torch.float16: 0.006}[dtype]
