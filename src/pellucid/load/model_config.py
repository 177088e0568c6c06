"""The config of a resolved model. No torch, no transformers."""

from __future__ import annotations

from pellucid.errors import ModelError
from pellucid.load.files import ModelFiles
from pellucid.load.gguf_config import parse_gguf_config
from pellucid.load.hf_config import parse_hf_config
from pellucid.models.config import ModelConfig


def load_config(files: ModelFiles) -> ModelConfig:
    """Read a model's config and check that its parts fit together.

    Raises:
        ModelError: the file is damaged, asks for what is unsupported, or contradicts itself.
    """
    is_gguf = files.kind == "gguf"
    config = parse_gguf_config(files.gguf) if is_gguf else parse_hf_config(files.path)
    _check_consistency(config, files.name)
    return config


def _check_consistency(config: ModelConfig, where: str) -> None:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % kv_heads:
        raise ModelError(f"{where}: {heads} heads cannot share {kv_heads} key/value heads evenly")
    rotated = config.head_dim * config.partial_rotary
    if config.architecture != "gpt2" and (rotated < 2 or rotated % 2):
        raise ModelError(f"{where}: {rotated:g} rotated dimensions per head; it must be even")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        for factors in (scaling.short_factor, scaling.long_factor):
            if len(factors) != int(rotated) // 2:
                raise ModelError(
                    f"{where}: longrope has {len(factors)} factors for"
                    f" {int(rotated) // 2} frequencies"
                )
