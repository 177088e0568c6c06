"""Random LoRA adapters for tiny models, as PEFT's folders and as llama.cpp's GGUF files.

Nothing of pellucid is used: `make_peft` saves with the peft package, and `adapter_to_gguf` writes
what llama.cpp's convert_lora_to_gguf.py is defined to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

from tests.tiny_models import _permuted

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]  # experts have no room for adapters
TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), ATTENTION),
}


def make_peft(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Any:
    """Save a random adapter for the model in `base`; returns the adapted model, in eval mode."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    arch = model.config.model_type
    options = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS.get(arch, LLAMA_TARGETS)}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **(options | settings))
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:  # B starts as zeros, which would hide everything
                weight.normal_(0.0, 0.3)
    adapted.save_pretrained(folder)
    return adapted


def adapter_to_gguf(base: Path, folder: Path, path: Path, **metadata: Any) -> None:
    """Convert a folder of `make_peft` for the model in `base`; `metadata` replaces keys."""
    config = json.loads((base / "config.json").read_text())
    adapter = json.loads((folder / "adapter_config.json").read_text())
    arch = config["model_type"].removesuffix("_text").replace("_moe", "moe")
    arch = "llama" if arch in ("mistral", "mixtral") else arch
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(adapter["lora_alpha"]))
    for key, value in metadata.items():
        writer.kv_data[0][key.replace("__", ".")] = gguf.GGUFValue(
            value, gguf.GGUFValueType.get_type(value)
        )
    model_arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    layers = config.get("num_hidden_layers") or config["n_layer"]
    name_map = gguf.get_tensor_name_map(model_arch, layers)
    heads = {
        "q_proj": config.get("num_attention_heads"),
        "k_proj": config.get("num_key_value_heads"),
    }
    for name, data in load_file(folder / "adapter_model.safetensors").items():
        module, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        new_name = name_map.get_name(module)
        assert new_name is not None, module
        projection = module.rpartition(".")[2]
        if arch == "llama" and kind == "B.weight" and projection in heads:
            data = _permuted(data, heads[projection])
        writer.add_tensor(f"{new_name}.weight.lora_{kind[0].lower()}", np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
