"""Rotary settings of a Hugging Face config, in the spelling of transformers 4 or 5.

4: "rope_theta": 5e5, "rope_scaling": {"rope_type" or "type": "llama3", ...} or null
5: "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, ...}
   Gemma 3: one such object each for "full_attention" and "sliding_attention"
"""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.errors import ModelError
from pellucid.load import limits
from pellucid.load.fields import Fields, positive_numbers
from pellucid.models.config import RopeScaling

_GEMMA3_THETA, _GEMMA3_THETA_LOCAL = 1_000_000.0, 10_000.0


@dataclass(frozen=True, slots=True)
class Rope:
    """What `ModelConfig` needs to know about positions."""

    theta: float
    theta_local: float | None
    partial: float
    scaling: RopeScaling | None
    max_position: int


def parse_rope(fields: Fields, architecture: str) -> Rope:
    """Read the rotary settings, whichever way they are spelled.

    Raises:
        ModelError: an unknown rope type, or a value out of range.
    """
    max_position = fields.integer("max_position_embeddings", 1, limits.POSITION)
    if architecture == "gpt2":
        return Rope(10_000.0, None, 1.0, None, max_position)
    nothing = Fields({}, fields.where)
    rope = fields.section("rope_parameters") or fields.section("rope_scaling") or nothing
    local = None
    if architecture == "gemma3":
        local = rope.section("sliding_attention") or nothing
        rope = rope.section("full_attention") or (nothing if "sliding_attention" in rope else rope)
    elif "full_attention" in rope or "sliding_attention" in rope:
        raise ModelError(f"{rope.where}: settings per layer type are supported for gemma3 only")
    default = fields.number("rope_theta", 1.0, limits.ROPE_BASE, _default_theta(architecture))
    partial = fields.number("partial_rotary_factor", 1e-3, 1.0, 1.0)
    scaling = _scaling(rope, fields, architecture, max_position)
    if scaling is not None and scaling.kind == "yarn":
        # Published configs state either the original length or the stretched one.
        max_position = max(max_position, int(scaling.original_max_position * scaling.factor))
    return Rope(
        theta=rope.number("rope_theta", 1.0, limits.ROPE_BASE, default),
        theta_local=None if local is None else _local_theta(local, fields),
        partial=rope.number("partial_rotary_factor", 1e-3, 1.0, partial),
        scaling=scaling,
        max_position=max_position,
    )


def _default_theta(architecture: str) -> float:
    return {"gemma3": _GEMMA3_THETA, "mixtral": 1_000_000.0}.get(architecture, 10_000.0)


def _local_theta(local: Fields, fields: Fields) -> float:
    if _kind(local) != "default":
        raise local.wrong("rope_type", "default: sliding layers are not scaled")
    default = fields.number("rope_local_base_freq", 1.0, limits.ROPE_BASE, _GEMMA3_THETA_LOCAL)
    return local.number("rope_theta", 1.0, limits.ROPE_BASE, default)


def _kind(rope: Fields) -> str:
    return rope.text("rope_type", rope.text("type", "default"))


def _scaling(
    rope: Fields, fields: Fields, architecture: str, max_position: int
) -> RopeScaling | None:
    kind = _kind(rope)
    if architecture == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # what early Phi-3 configs mean by these names
    if kind == "default":
        return None
    if kind == "longrope":
        return _longrope(rope, fields, max_position)
    factor = rope.number("factor", 1.0, limits.ROPE_FACTOR)
    original = _original(rope, fields, max_position)
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    if kind == "dynamic":
        return RopeScaling("dynamic", factor=factor, original_max_position=max_position)
    if kind == "llama3":
        low = rope.number("low_freq_factor", 1e-3, 1e6)
        high = rope.number("high_freq_factor", 1e-3, 1e6)
        if high <= low:
            raise rope.wrong("high_freq_factor", f"above low_freq_factor ({low:g})")
        return RopeScaling(
            "llama3",
            factor=factor,
            original_max_position=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    if kind == "yarn":
        return RopeScaling(
            "yarn",
            factor=factor,
            original_max_position=original,
            attention_factor=rope.optional_number("attention_factor", 1e-6, 1e6),
            beta_fast=rope.number("beta_fast", 1e-6, 1e6, 32.0),
            beta_slow=rope.number("beta_slow", 1e-6, 1e6, 1.0),
            mscale=rope.optional_number("mscale", 0.0, 1e6),
            mscale_all_dim=rope.optional_number("mscale_all_dim", 0.0, 1e6),
            truncate=rope.flag("truncate", True),
        )
    raise ModelError(
        f"{rope.where}: rope type {kind!r:.60} is not supported; supported are"
        " default, linear, dynamic, llama3, yarn and longrope"
    )


def _original(rope: Fields, fields: Fields, max_position: int) -> int:
    """Length the model was first trained for; Phi-3 keeps it beside the rope settings."""
    key = "original_max_position_embeddings"
    home = fields if key in fields else rope
    return home.integer(key, 2, limits.POSITION, max_position)


def _longrope(rope: Fields, fields: Fields, max_position: int) -> RopeScaling:
    original = _original(rope, fields, max_position)
    for key in ("short_factor", "long_factor"):
        if not positive_numbers(rope.items(key, limits.HEAD_DIM)):
            raise rope.wrong(key, "a list of numbers above 0")
    return RopeScaling(
        "longrope",
        factor=rope.number("factor", 1e-4, limits.ROPE_FACTOR, max_position / original),
        original_max_position=original,
        attention_factor=rope.optional_number("attention_factor", 1e-6, 1e6),
        short_factor=tuple(map(float, rope.items("short_factor"))),
        long_factor=tuple(map(float, rope.items("long_factor"))),
    )
