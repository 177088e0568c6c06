"""What memory an engine will take, from its config alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from pellucid.config import EngineConfig

if TYPE_CHECKING:
    from pellucid.lab.subject import Subject

FOUR_BITS = {"Q4_0", "Q4_1", "Q4_K"}
WITH_MINIMA = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
DENSE = {"F32", "F16", "BF16"}
GROUP, GROUP_BYTES = 32, 2  # columns of a packed matrix that share a scale, and a minimum


class Prediction(msgspec.Struct):
    """Bytes, from the shape of the model, its file's types and the settings alone."""

    weights: int
    pool: int
    backed: int  # of the pool, by its first touch
    token: int  # keys and values of one
    activations: int  # of the largest step
    logits: int  # of all seats


def predict(subject: Subject, config: EngineConfig) -> Prediction:
    """What `config` will take. Nothing is loaded for it."""
    import torch

    from pellucid.kernels.dispatch import select_ops
    from pellucid.kernels.interface import kv_head_bytes
    from pellucid.runner import device as device_api
    from pellucid.runner.first_touch import AHEAD_BYTES
    from pellucid.runner.memory import kv_block_bytes, kv_pool_blocks

    shape, device = subject.config, torch.device("cpu")
    kernels = select_ops(config.runner.kernels, device, shape.head_dim).name
    dtype = device_api.pick_dtype(config.model.dtype, device)
    kv_dtype = device_api.pick_kv_dtype(config, device, kernels, shape.plain_keys)
    block = kv_block_bytes(shape, config.cache.block_size, kv_head_bytes(shape.head_dim, kv_dtype))
    native = kernels == "native"
    # The widest moment of a layer: the stream, its norm, and what the MLP has between its products;
    # native kernels join gate and up as they compute them.
    width = 2 * shape.hidden_size + (1 if native else 3) * shape.intermediate_size
    rows, seats = config.scheduler.token_budget("cpu"), config.scheduler.max_num_seqs
    length = config.model.max_model_len or shape.max_position
    # What is free does not matter: the pool's size is set.
    pool = block * kv_pool_blocks(config.cache, block, 0, seats, length)
    return Prediction(
        weights=_weight_bytes(subject, dtype.itemsize, native=native),
        pool=pool,
        backed=min(pool, AHEAD_BYTES),
        token=block // config.cache.block_size,
        activations=4 * rows * width,
        logits=4 * seats * shape.vocab_size,
    )


def _weight_bytes(subject: Subject, dense_bytes: int, *, native: bool) -> int:
    """Of all matrices, as the kernels keep them: packed, or dense where they do not pack."""
    from pellucid.models.shapes import weight_shapes

    files = subject.files
    if files is None or files.kind != "gguf" or not native:
        shapes = weight_shapes(subject.config).values()
        return dense_bytes * sum(math.prod(one) for one in shapes if len(one) == 2)
    total = 0.0
    for tensor in files.gguf.tensors.values():
        if len(tensor.shape) == 2:
            total += math.prod(tensor.shape) * _packed_bytes(tensor.ggml_type, dense_bytes)
    return round(total)


def _packed_bytes(ggml_type: str, dense_bytes: int) -> float:
    """Per number of a matrix."""
    if ggml_type in DENSE:
        return dense_bytes
    value = 0.5 if ggml_type in FOUR_BITS else 1.0
    return value + (2 if ggml_type in WITH_MINIMA else 1) * GROUP_BYTES / GROUP
