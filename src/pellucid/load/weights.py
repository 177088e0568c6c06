"""Weights under canonical names, whatever file they come from.

Opening checks the file's tensors against the config, name by name and shape by shape; after that
`get` cannot meet a surprise. `names.py` says where each weight lies and what was done to it; the
classes here undo it.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.kernels.interface import IntegerMatrix
from pellucid.load.files import ModelFiles
from pellucid.load.gguf import GGUFFile, GGUFTensor
from pellucid.load.names import ROPE_FREQS, Stored, gguf_location, hf_location
from pellucid.load.safetensors import SafetensorsFolder
from pellucid.models.config import ModelConfig
from pellucid.models.shapes import Shape, weight_shapes
from pellucid.quant.gguf_blocks import dequantize
from pellucid.quant.gguf_integers import unpack
from pellucid.quant.rounding import can_round, round_matrix
from pellucid.quant.types import DENSE_TYPES, GGML_TYPES_BY_NAME, RawQuant

logger = logging.getLogger(__name__)


class Weights(ABC):
    """The weights of one open model."""

    def __init__(self, shapes: dict[str, Shape]) -> None:
        self._shapes = shapes

    def names(self) -> list[str]:
        """Canonical names of all weights, in order of use."""
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    @abstractmethod
    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as a dense, contiguous tensor in memory of its own; of files, on the CPU.

        Raises:
            KeyError: the model has no such weight.
            ModelError: the file cannot be read any more.
        """

    def raw(self, name: str) -> RawQuant | None:
        """The weight in its file's quantised blocks; None if it is not a quantised matrix."""
        return None

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        """The weight as integers with scales, in chunks of rows (see `kernels.interface.Matrix`).

        None if it is not a quantised matrix. Exact where the format is one of integers; the few
        formats of vector tables are rounded to 8 bits.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


def open_weights(files: ModelFiles, config: ModelConfig) -> Weights:
    """Open a model's weights and check them against its config.

    Raises:
        ModelError: a tensor is missing, has a wrong shape or an unsupported type, or is one that
            this model should not have (so that no part of a model is ever dropped in silence).
    """
    if files.kind == "gguf":
        return GGUFWeights(files.gguf, config)
    return SafetensorsWeights(files, config)


class GGUFWeights(Weights):
    """Weights of a GGUF file; matrices may stay quantised (`raw`)."""

    # Read into the config's RopeScaling.
    _IN_CONFIG = frozenset({"rope_factors_long.weight", "rope_factors_short.weight"})

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        shapes = weight_shapes(config)
        self._stored = {name: gguf_location(name, config, file.tensors) for name in shapes}
        if ROPE_FREQS in file.tensors:
            rotated = round(config.head_dim * config.partial_rotary)
            shapes[ROPE_FREQS] = (rotated // 2,)
            self._stored[ROPE_FREQS] = Stored(ROPE_FREQS)
        super().__init__(shapes)
        self._tensors = file.tensors
        self._rounded_types: set[str] = set()
        present = {t.name: t.shape for t in file.tensors.values() if t.name not in self._IN_CONFIG}
        _check(self._stored, shapes, present, file.path.name)
        for tensor in file.tensors.values():
            if len(tensor.shape) == 1 and tensor.ggml_type not in DENSE_TYPES:
                raise ModelError(
                    f"{file.path.name}: vector {tensor.name!r:.80} has type {tensor.ggml_type};"
                    " vectors must be F32, F16 or BF16"
                )

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        stored = self._stored[name]
        tensor = self._tensors[stored.name]
        rows = _canonical_rows(tensor, stored)
        return dequantize(rows, tensor.ggml_type, dtype).reshape(self._shapes[name])

    def raw(self, name: str) -> RawQuant | None:
        stored = self._stored[name]
        tensor = self._tensors[stored.name]
        if tensor.ggml_type in DENSE_TYPES:
            return None
        out, inner = self._shapes[name]
        return RawQuant(tensor.ggml_type, (out, inner), _canonical_rows(tensor, stored))

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        raw = self.raw(name)
        if raw is None:
            return None
        return unpack(raw) or self._rounded(raw)

    def _rounded(self, raw: RawQuant) -> Iterator[IntegerMatrix] | None:
        if not can_round(raw.shape):
            return None
        if raw.ggml_type not in self._rounded_types:
            self._rounded_types.add(raw.ggml_type)
            logger.info("%s has no integer form; rounded to 8 bits for the kernels", raw.ggml_type)
        return round_matrix(
            lambda rows: dequantize(raw.data[rows], raw.ggml_type, torch.float32).numpy(),
            raw.shape,
            bits=8,
        )

    def close(self) -> None:
        # The mapping goes with the last view of it.
        self._tensors = {}


class SafetensorsWeights(Weights):
    """Weights of a Hugging Face folder."""

    def __init__(self, files: ModelFiles, config: ModelConfig) -> None:
        shapes = weight_shapes(config)
        super().__init__(shapes)
        self._folder = SafetensorsFolder(files.path)
        self._real_name = _real_names(self._folder.shapes, config)
        self._stored = {name: hf_location(name, config, self._real_name) for name in shapes}
        present = {name: self._folder.shapes[real] for name, real in self._real_name.items()}
        _check(self._stored, shapes, present, files.name)

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        stored = self._stored[name]
        tensor = self._folder.read(
            self._real_name[stored.name],
            stored.rows,
            expert=stored.expert,
            transposed=stored.transposed,
        )
        if stored.plus_one:
            tensor = 1.0 + tensor.float()
        return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def close(self) -> None:
        self._folder.close()


def _canonical_rows(tensor: GGUFTensor, stored: Stored) -> NDArray[np.uint8]:
    """The rows that make up a canonical weight, in its order: uint8 [rows, bytes per row].

    Each element of a vector counts as a row, so that biases split and reorder as matrices do.
    """
    raw = tensor.raw
    if len(tensor.shape) == 1:
        raw = raw.reshape(-1, GGML_TYPES_BY_NAME[tensor.ggml_type].block_bytes)
    if stored.expert is not None:
        height = tensor.shape[1]
        raw = raw[stored.expert * height : (stored.expert + 1) * height]
    if stored.rows is not None:
        raw = raw[stored.rows]
    if stored.interleaved_heads:
        # Interleaved rotary order keeps rows 0, half, 1, half+1, ... of each head side by side.
        pairs = raw.reshape(stored.interleaved_heads, -1, 2, raw.shape[-1])
        raw = pairs.swapaxes(1, 2).reshape(raw.shape)
    return raw


# Buffers, and parts of a multimodal model, that a text model's forward pass does not read.
_NOT_WEIGHTS = re.compile(
    r"\.rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$"
    r"|(^|\.)(vision_tower|vision_model|multi_modal_projector)\."
)


def _real_names(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """Names as `hf_location` spells them -> names in the files.

    Checkpoints of a bare base model lack the root ("transformer.", "model."); those of a
    multimodal one carry a prefix of their own.
    """
    root = "transformer." if config.architecture == "gpt2" else "model."
    real: dict[str, str] = {}
    for name in names:
        if _NOT_WEIGHTS.search(name):
            continue
        plain = name.replace("language_model.", "", 1)
        if plain.startswith("lm_head."):
            if config.tie_embeddings:
                continue  # a copy of the embedding
        elif not plain.startswith(root):
            plain = root + plain
        real[plain] = name
    return real


def _check(
    stored: Mapping[str, Stored],
    shapes: Mapping[str, Shape],
    present: Mapping[str, Shape],
    where: str,
) -> None:
    """Compare what the file must hold with what it holds."""
    wanted = stored_shapes(stored, shapes)
    for name, shape in wanted.items():
        if name not in present:
            raise ModelError(f"{where}: tensor {name} is missing")
        if present[name] != shape:
            raise ModelError(
                f"{where}: tensor {name} has shape {list(present[name])}; its config asks for"
                f" {list(shape)}"
            )
    unknown = sorted(present.keys() - wanted.keys())
    if unknown:
        raise ModelError(
            f"{where}: tensor {unknown[0]!r:.80} ({len(unknown)} unknown in all) belongs to a"
            " feature that is not supported"
        )


def stored_shapes(stored: Mapping[str, Stored], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shape that each of the file's tensors must have."""
    wanted: dict[str, Shape] = {}
    for name, location in stored.items():
        shape = shapes[name]
        if location.rows is not None:  # a fused tensor is as high as its last part reaches
            shape = (location.rows.stop, *shape[1:])
        if location.expert is not None:
            shape = (location.expert + 1, *shape)
        if location.squeezed:
            shape = shape[1:]
        before = wanted.get(location.name, shape)
        wanted[location.name] = tuple(map(max, shape, before))
    # Transposed only once the heights of all parts are known.
    transposed = {location.name for location in stored.values() if location.transposed}
    return {n: shape[::-1] if n in transposed else shape for n, shape in wanted.items()}
