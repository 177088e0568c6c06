"""Rotary position embedding (Su et al. 2021) and the ways to stretch it.

Component pair i of a head turns by `position * frequency[i]`, frequency[i] = theta^(-2i / rotated).
Every scaling below changes the frequencies once, when the model is built; "dynamic" and "longrope",
which were described in terms of the current length, take the length that the model is served with.
Were it the current length, old keys would have been rotated with other frequencies than new ones,
and an answer would depend on how its prompt was cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.models.config import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class RopeTable:
    """cos and sin of every position and pair: [length, rotated / 2] float32 each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        length: int,
        device: torch.device,
        *,
        local: bool = False,
        freq_factors: Tensor | None = None,
    ) -> RopeTable:
        """The table of positions 0 .. length - 1, `length` being the longest context served.

        `local` takes Gemma 3's base for sliding layers, which no scaling touches. `freq_factors`
        [rotated / 2] divides the frequencies: how GGUF files carry a scaling.
        """
        theta, scaling = config.rope_theta, config.rope_scaling
        if local and config.rope_theta_local is not None:
            theta, scaling = config.rope_theta_local, None
        rotated = round(config.head_dim * config.partial_rotary)
        frequencies, amplitude = _frequencies(config, rotated, theta, scaling, length)
        if freq_factors is not None and not local:
            frequencies = frequencies / freq_factors.float().cpu()
        angles = torch.arange(length).float().unsqueeze(1) * frequencies
        return cls((angles.cos() * amplitude).to(device), (angles.sin() * amplitude).to(device))


def _frequencies(
    config: ModelConfig, rotated: int, theta: float, scaling: RopeScaling | None, length: int
) -> tuple[Tensor, float]:
    """Frequencies [rotated / 2] float32, and the factor on cos and sin."""
    plain = _plain(rotated, theta)
    if scaling is None:
        return plain, 1.0
    match scaling.kind:
        case "linear":  # Chen et al. 2023, position interpolation
            return plain / scaling.factor, 1.0
        case "dynamic":
            return _dynamic(config, rotated, theta, scaling, length), 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(plain, rotated, theta, scaling), _yarn_amplitude(scaling)
        case "longrope":
            return _longrope(plain, scaling, length), _longrope_amplitude(scaling)
    raise ModelError(f"unknown rope scaling {scaling.kind!r}")


def _plain(rotated: int, theta: float) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, rotated, 2).float() / rotated))


def _dynamic(
    config: ModelConfig, rotated: int, theta: float, scaling: RopeScaling, length: int
) -> Tensor:
    """NTK-aware: raise the base until the slowest pair spans `length` (bloc97, emozilla 2023)."""
    trained = scaling.original_max_position or config.max_position
    stretch = scaling.factor * max(length, trained) / trained - (scaling.factor - 1)
    return _plain(rotated, theta * stretch ** (rotated / (rotated - 2)))


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow pairs are stretched, fast ones left alone, those between blended (Llama 3.1)."""
    turns = scaling.original_max_position * plain / (2 * math.pi)  # within the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / scaling.factor * (1 - kept)


def _yarn(plain: Tensor, rotated: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Like llama3, but the blend is linear in the pair's index (Peng et al. 2023)."""

    def pair_with(turns: float) -> float:
        trained = scaling.original_max_position
        return rotated * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    span = high - low if high != low else 0.001
    stretched = ((torch.arange(rotated // 2).float() - low) / span).clamp(0, 1)
    return plain * (1 - stretched) + plain / scaling.factor * stretched


def _yarn_amplitude(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def amplitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return amplitude(scaling.mscale) / amplitude(scaling.mscale_all_dim)
    return amplitude(1.0)


def _longrope(plain: Tensor, scaling: RopeScaling, length: int) -> Tensor:
    """A trained factor for each pair, other ones beyond the original context (Ding et al. 2024)."""
    within = length <= scaling.original_max_position
    factors = torch.tensor(scaling.short_factor if within else scaling.long_factor)
    if factors.shape != plain.shape:
        raise ModelError(f"longrope has {len(factors)} factors, the model has {len(plain)} pairs")
    return plain / factors


def _longrope_amplitude(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position))
