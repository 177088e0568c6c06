"""Rotary tables against the functions that transformers computes them with."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pellucid.errors import ModelError
from pellucid.layers.rope import RopeTable
from pellucid.models.config import ModelConfig, RopeScaling

CPU = torch.device("cpu")
HEAD_DIM = 32
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=8,
    hidden_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=HEAD_DIM,
    intermediate_size=8,
    max_position=64,
    rope_theta=1e5,
)
SHORT = tuple(1 + i / 10 for i in range(HEAD_DIM // 2))
LONG = tuple(1 + i for i in range(HEAD_DIM // 2))

CASES: dict[str, RopeScaling] = {
    "linear": RopeScaling("linear", factor=3.0),
    "dynamic": RopeScaling("dynamic", factor=2.0, original_max_position=64),
    "llama3": RopeScaling(
        "llama3",
        factor=8.0,
        original_max_position=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
    "yarn": RopeScaling("yarn", factor=4.0, original_max_position=64),
    "yarn, ramp set": RopeScaling(
        "yarn", factor=4.0, original_max_position=64, beta_fast=8.0, beta_slow=2.0
    ),
    "yarn, not truncated": RopeScaling(
        "yarn", factor=4.0, original_max_position=64, truncate=False
    ),
    "yarn, mscale": RopeScaling(
        "yarn", factor=40.0, original_max_position=64, mscale=1.0, mscale_all_dim=0.7
    ),
    "yarn, amplitude given": RopeScaling(
        "yarn", factor=4.0, original_max_position=64, attention_factor=1.25
    ),
    "longrope": RopeScaling(
        "longrope", factor=4.0, original_max_position=64, short_factor=SHORT, long_factor=LONG
    ),
    "longrope, amplitude given": RopeScaling(
        "longrope",
        factor=4.0,
        original_max_position=64,
        short_factor=SHORT,
        long_factor=LONG,
        attention_factor=1.25,
    ),
}


def their_table(scaling: RopeScaling, partial: float, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 0 .. length - 1 as transformers has them for that length."""
    given = {key: value for key, value in dataclasses.asdict(scaling).items() if value is not None}
    parameters: dict[str, Any] = {
        **given,
        "rope_type": given.pop("kind"),
        "rope_theta": CONFIG.rope_theta,
        "partial_rotary_factor": partial,
        "original_max_position_embeddings": scaling.original_max_position,
    }
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONFIG.max_position,
        rope_parameters=parameters,
    )
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[scaling.kind](config, CPU, seq_len=length)
    angles = torch.arange(length).float()[:, None] * frequencies
    return angles.cos() * amplitude, angles.sin() * amplitude


@pytest.mark.parametrize("length", [60, 200])
@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("scaling", CASES.values(), ids=CASES)
def test_tables_equal_transformers(scaling: RopeScaling, partial: float, length: int) -> None:
    pairs = int(HEAD_DIM * partial) // 2
    if scaling.kind == "longrope":
        scaling = dataclasses.replace(scaling, short_factor=SHORT[:pairs], long_factor=LONG[:pairs])
    config = dataclasses.replace(CONFIG, rope_scaling=scaling, partial_rotary=partial)
    table = RopeTable.build(config, length, CPU)
    assert table.cos.shape == table.sin.shape == (length, pairs)
    assert table.cos.dtype == torch.float32
    cos, sin = their_table(scaling, partial, length)
    torch.testing.assert_close(table.cos, cos, rtol=0, atol=1e-4)
    torch.testing.assert_close(table.sin, sin, rtol=0, atol=1e-4)


def test_scaling_is_settled_by_the_served_length() -> None:
    """The same position is rotated alike whatever the length of its own sequence."""
    config = dataclasses.replace(CONFIG, rope_scaling=CASES["dynamic"])
    within, beyond = (RopeTable.build(config, length, CPU) for length in (64, 128))
    plain = RopeTable.build(CONFIG, 64, CPU)
    assert torch.equal(within.cos, plain.cos)
    assert not torch.equal(beyond.cos[:64], plain.cos)


def test_frequency_factors_divide() -> None:
    factors = torch.linspace(1, 8, HEAD_DIM // 2)
    table = RopeTable.build(CONFIG, 10, CPU, freq_factors=factors)
    exponents = torch.arange(0, HEAD_DIM, 2) / HEAD_DIM
    angles = torch.arange(10)[:, None] / (1e5**exponents * factors)
    torch.testing.assert_close(table.cos, angles.cos(), rtol=0, atol=1e-5)


def test_local_table_has_its_own_base_and_no_scaling() -> None:
    config = dataclasses.replace(CONFIG, rope_theta_local=100.0, rope_scaling=CASES["linear"])
    factors = torch.full((HEAD_DIM // 2,), 2.0)
    local = RopeTable.build(config, 10, CPU, local=True, freq_factors=factors)
    alone = RopeTable.build(dataclasses.replace(CONFIG, rope_theta=100.0), 10, CPU)
    assert torch.equal(local.cos, alone.cos)


def test_wrong_number_of_factors_is_refused() -> None:
    config = dataclasses.replace(CONFIG, rope_scaling=CASES["longrope"], partial_rotary=0.5)
    with pytest.raises(ModelError, match="16 factors, the model has 8 pairs"):
        RopeTable.build(config, 10, CPU)
