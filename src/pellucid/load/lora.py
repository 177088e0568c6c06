"""LoRA adapters: PEFT's folders and GGUF files, checked against the model that they are for.

Both keep, for each projection that they change, `A` [rank, in] and `B` [out, rank], and a factor
`alpha` on their product. What comes out has canonical names (`models/shapes.py`), fused projections
taken apart, rotary halves split and the factor multiplied into `B`. Whatever of a file would
change the model in another way is refused by name, so that nothing is dropped in silence.

Sources: PEFT's `LoraConfig` (https://huggingface.co/docs/peft/package_reference/lora) and what
llama.cpp's convert_lora_to_gguf.py writes.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.interface import LowRank
from pellucid.load.fields import Fields, read_json
from pellucid.load.gguf import read_gguf
from pellucid.load.names import Stored, gguf_location, hf_location
from pellucid.load.safetensors import SafetensorsFolder
from pellucid.load.weights import stored_shapes
from pellucid.models.config import ModelConfig
from pellucid.models.shapes import Shape, weight_shapes
from pellucid.quant.gguf_blocks import dequantize

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
MAX_ALPHA = 1e6
MAX_PATTERNS = 4096
# Ways to begin that change the model's own weights: the adapter is of another model then.
_FOREIGN_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")
# What says nothing about the adapter's numbers, beside what is read below.
_HARMLESS = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"),
        *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "loftq_config", "lora_dropout", "megatron_core"),
        *("megatron_config", "peft_version", "qalora_group_size", "revision", "runtime_config"),
        *("target_modules", "task_type"),
    )
)
_READ = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("bias", "init_lora_weights"),
    )
)


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """What an adapter adds: (A, B), float32, of each projection that it changes, by its name."""

    updates: dict[str, LowRank]

    @property
    def rank(self) -> int:
        return max(len(a) for a, _ in self.updates.values())

    @property
    def num_parameters(self) -> int:
        return sum(a.numel() + b.numel() for a, b in self.updates.values())

    def digest(self) -> bytes:
        """SHA-256 of all numbers: adapters of equal digests do the same to a model."""
        whole = hashlib.sha256()
        for name, matrices in sorted(self.updates.items()):
            for matrix in matrices:
                whole.update(f"{name} {list(matrix.shape)}\n".encode())
                whole.update(matrix.numpy().tobytes())
        return whole.digest()


def read_adapter(path: Path, config: ModelConfig, max_rank: int) -> LoraAdapter:
    """Read an adapter for a model of `config`.

    Raises:
        ModelError: it is not there, damaged, for another model, above `max_rank`, or does what is
            not supported; the message names the tensor or the key.
    """
    file: _File
    if path.suffix == ".gguf":
        file = _GGUFFile(path, config)
    elif path.is_dir():
        file = _PeftFolder(path, config)
    else:
        raise ModelError(f"{path} is neither a folder with {PEFT_CONFIG} nor a .gguf file")
    try:
        return LoraAdapter(_updates(file, config, max_rank))
    finally:
        file.close()


def _updates(file: _File, config: ModelConfig, max_rank: int) -> dict[str, LowRank]:
    shapes = {
        name: shape
        for name, shape in weight_shapes(config).items()
        if name.endswith("_proj.weight") and ".experts." not in name
    }
    stored = {name: replace(file.location(name), transposed=False) for name in shapes}
    wanted = stored_shapes(stored, shapes)
    ranks = _ranks(file, wanted, max_rank)
    updates = {}
    for name, place in stored.items():
        if place.name in ranks:
            a_name, b_name = file.names(place.name)
            scale = file.scale(place.name, ranks[place.name])
            b = _canonical(file.read(b_name), place) * scale
            updates[name.removesuffix(".weight")] = (file.read(a_name), b.contiguous())
    for name, matrices in updates.items():
        if not all(matrix.isfinite().all() for matrix in matrices):
            raise ModelError(f"{file.where}: what it adds to {name} is not finite")
    return updates


def _ranks(file: _File, wanted: Mapping[str, Shape], max_rank: int) -> dict[str, int]:
    """The rank of each stored weight that the file changes; all of its tensors are checked."""
    ranks = {}
    unknown = dict(file.shapes)
    for weight, (out, inner) in wanted.items():
        a_name, b_name = file.names(weight)
        a, b = unknown.pop(a_name, None), unknown.pop(b_name, None)
        if a is None and b is None:
            continue
        if a is None or b is None:
            missing = a_name if a is None else b_name
            raise ModelError(f"{file.where}: tensor {missing} is missing")
        rank = a[0] if a else 0
        for name, shape, right in ((a_name, a, (rank, inner)), (b_name, b, (out, rank))):
            if shape != right:
                raise ModelError(
                    f"{file.where}: tensor {name} has shape {list(shape)}; with this model and"
                    f" rank {rank} it would have {list(right)}"
                )
        if not 1 <= rank <= max_rank:
            raise ModelError(
                f"{file.where}: tensor {a_name} has rank {rank}; allowed are 1 to {max_rank}"
                " (--max-lora-rank)"
            )
        file.check_rank(weight, rank)
        ranks[weight] = rank
    if unknown:
        raise ModelError(
            f"{file.where}: tensor {min(unknown)!r:.120} ({len(unknown)} in all) belongs to no"
            " projection of this model; adapters may change those of attention and MLP alone, and"
            " not those of experts"
        )
    if not ranks:
        raise ModelError(f"{file.where} changes nothing")
    return ranks


def _canonical(b: Tensor, stored: Stored) -> Tensor:
    """The rows of a stored B that belong to a canonical weight, in its order."""
    if stored.rows is not None:
        b = b[stored.rows]
    if stored.interleaved_heads:
        pairs = b.reshape(stored.interleaved_heads, -1, 2, b.shape[1])
        b = pairs.swapaxes(1, 2).reshape(b.shape)
    return b


class _File(ABC):
    """An adapter as it is stored.

    Attributes:
        where: what errors call it.
        shapes: of all its tensors.
    """

    where: str
    shapes: dict[str, Shape]

    @abstractmethod
    def location(self, name: str) -> Stored:
        """Where a model of this format would keep canonical weight `name`."""

    @abstractmethod
    def names(self, weight: str) -> tuple[str, str]:
        """What the A and B of a stored weight are called."""

    @abstractmethod
    def scale(self, weight: str, rank: int) -> float:
        """The factor on B A."""

    def check_rank(self, weight: str, rank: int) -> None:
        """Raises ModelError if the rank is not what the file says elsewhere."""
        return

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor, float32, in memory of its own."""

    def close(self) -> None:
        """Let go of the file."""
        return


class _PeftFolder(_File):
    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.where = folder.name
        self._config = config
        values = read_json(folder / PEFT_CONFIG)
        fields = Fields(values, f"{folder.name}/{PEFT_CONFIG}")
        _check_features(fields, values)
        self._rank = fields.integer("r", 1, 1 << 20)
        self._alpha = fields.number("lora_alpha", -MAX_ALPHA, MAX_ALPHA)
        self._has_ranks = bool(_pattern(fields, "rank_pattern"))
        self._alphas = _pattern(fields, "alpha_pattern")
        self._rslora = fields.flag("use_rslora")
        self._tensors = SafetensorsFolder(folder, PEFT_TENSORS)
        self.shapes = self._tensors.shapes

    def location(self, name: str) -> Stored:
        return hf_location(name, self._config, ())

    def names(self, weight: str) -> tuple[str, str]:
        module = PEFT_PREFIX + weight.removesuffix(".weight")
        return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

    def scale(self, weight: str, rank: int) -> float:
        module = weight.removesuffix(".weight")
        alpha = self._alpha
        for key, value in self._alphas.items():
            if module == key or module.endswith("." + key):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self._rslora else rank)

    def check_rank(self, weight: str, rank: int) -> None:
        if rank != self._rank and not self._has_ranks:
            name, _ = self.names(weight)
            raise ModelError(
                f"{self.where}: tensor {name} has rank {rank}; {PEFT_CONFIG} says r = {self._rank}"
            )

    def read(self, name: str) -> Tensor:
        return self._tensors.read(name).to(torch.float32, copy=True).contiguous()

    def close(self) -> None:
        self._tensors.close()


def _check_features(fields: Fields, values: Mapping[str, Any]) -> None:
    """Raises ModelError for what this reader would have to ignore."""
    if fields.text("peft_type") != "LORA":
        raise fields.wrong("peft_type", "LORA")
    if fields.get("bias", "none") != "none":
        raise fields.wrong("bias", "none: adapters with biases are not supported")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_FOREIGN_BASES):
        raise fields.wrong("init_lora_weights", "one that leaves the model's own weights alone")
    for key in sorted(values.keys() - _HARMLESS - _READ):
        if values[key]:  # modules_to_save, use_dora, trainable_token_indices, what is yet to come
            raise ModelError(f"{fields.where}: {key!r:.60} is not supported")


def _pattern(fields: Fields, key: str) -> dict[str, float]:
    """Numbers by the last parts of modules' names. PEFT would take regular expressions, too."""
    patterns = fields.get(key, {})
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise fields.wrong(key, f"an object of at most {MAX_PATTERNS} entries")
    for pattern, value in patterns.items():
        if not re.fullmatch(r"[\w.]+", pattern):
            raise ModelError(
                f"{fields.where}: {key} has {pattern!r:.60}; only names of modules are supported"
            )
        if type(value) not in (int, float) or not abs(value) <= MAX_ALPHA:
            raise fields.wrong(key, f"numbers of at most {MAX_ALPHA:g}")
    return {pattern: float(value) for pattern, value in patterns.items()}


class _GGUFFile(_File):
    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.where = path.name
        file = read_gguf(path)
        fields = Fields(file.metadata, path.name)
        for key, right in (("general.type", "adapter"), ("adapter.type", "lora")):
            if fields.get(key) != right:
                raise fields.wrong(key, repr(right))
        # GGUF knows Mistral as Llama, whose rotary halves it interleaves.
        is_llama = config.architecture in ("mistral", "mixtral")
        architecture = "llama" if is_llama else config.architecture
        if fields.get("general.architecture") != architecture:
            raise fields.wrong("general.architecture", f"{architecture!r}, as the model's is")
        if "adapter.alora.invocation_tokens" in fields:
            raise ModelError(f"{path.name}: adapter.alora.invocation_tokens is not supported")
        self._config = replace(config, architecture=architecture)
        self._alpha = fields.number("adapter.lora.alpha", -MAX_ALPHA, MAX_ALPHA, default=0.0)
        self._tensors = file.tensors
        self.shapes = {tensor.name: tensor.shape for tensor in file.tensors.values()}

    def location(self, name: str) -> Stored:
        return gguf_location(name, self._config, ())

    def names(self, weight: str) -> tuple[str, str]:
        return f"{weight}.lora_a", f"{weight}.lora_b"

    def scale(self, weight: str, rank: int) -> float:
        return self._alpha / rank if self._alpha else 1.0  # as llama.cpp has it

    def read(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return dequantize(tensor.raw, tensor.ggml_type, torch.float32).reshape(tensor.shape)
