"""What the gateway did, as plain numbers that metrics can read whenever they are asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

CacheOutcome = Literal["hit", "miss", "bypass"]
Refusal = Literal["api_key", "rate_limit_requests", "rate_limit_tokens", "shutting_down"]


@dataclass(slots=True)
class GatewayCounts:
    """Since the server began; only ever growing."""

    refused: Counter[Refusal] = field(default_factory=Counter)
    cache: Counter[CacheOutcome] = field(default_factory=Counter)
    redis_failures: int = 0
