"""The sampling flags of `generate` and `chat`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from pellucid.sampling_params import SamplingParams


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the command line offers of SamplingParams, which checks the limits."""

    max_tokens: Annotated[int, Meta(description="Most tokens of an answer.")] = 512
    temperature: Annotated[
        float, Meta(description="Randomness; 0 always takes the likeliest token.")
    ] = 0.7
    top_p: Annotated[
        float, Meta(description="Keep the likeliest tokens that make up this probability.")
    ] = 0.95
    top_k: Annotated[int, Meta(description="Keep the k likeliest tokens; 0 keeps all.")] = 0
    min_p: Annotated[
        float, Meta(description="Drop tokens less likely than this share of the likeliest.")
    ] = 0.0
    repetition_penalty: Annotated[
        float, Meta(description="Above 1: tokens that occurred become less likely.")
    ] = 1.0
    presence_penalty: Annotated[
        float, Meta(description="Taken off the logit of tokens the answer already has.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Meta(description="The same, once per occurrence in the answer.")
    ] = 0.0
    seed: Annotated[int | None, Meta(description="Same seed, same answer; drawn if not given.")] = (
        None
    )
    stop: Annotated[list[str], Meta(description="End at this text; may be repeated.")] = []
    ignore_eos: Annotated[bool, Meta(description="Go on after the model's end token.")] = False

    def params(self) -> SamplingParams:
        """Raises BadRequest naming the field that is out of range."""
        return SamplingParams(**msgspec.structs.asdict(self))
