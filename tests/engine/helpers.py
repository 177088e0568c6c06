"""Small makers shared by the engine's tests."""

from __future__ import annotations

from typing import Any

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.engine.request import Request
from pellucid.messages import AddRequest, TokenDelta, pack_tokens
from pellucid.runner.fake import FakeRunner
from pellucid.sampling_params import SamplingParams


def message(
    request_id: str, prompt: list[int], *, arrival: float = 0.0, **fields: Any
) -> AddRequest:
    """An AddRequest; keyword arguments go to it if it has such a field, else to its sampling."""
    names = ("priority", "user", "cache_salt", "deadline", "pooling", "adapter")
    own = {name: fields.pop(name) for name in names if name in fields}
    return AddRequest(
        request_id=request_id,
        prompt=pack_tokens(prompt),
        sampling=SamplingParams(**{"max_tokens": 8, **fields}),
        arrival_time=arrival,
        **own,
    )


def request(request_id: str, prompt: list[int], **fields: Any) -> Request:
    return Request(
        message(request_id, prompt, **fields), max_model_len=4096, eos_token_ids=frozenset({2})
    )


def core(
    *, num_blocks: int = 64, block_size: int = 4, prefix_caching: bool = True, **scheduler: Any
) -> EngineCore:
    return create_core(
        FakeRunner(num_blocks=num_blocks, block_size=block_size),
        CacheSettings(prefix_caching=prefix_caching),
        SchedulerSettings(**scheduler),
    )


def drain(engine: EngineCore, max_steps: int = 10_000) -> dict[str, list[TokenDelta]]:
    """Step until idle, checking integrity after every step; all deltas by request."""
    deltas: dict[str, list[TokenDelta]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return deltas
        for delta in engine.step().deltas:
            deltas.setdefault(delta.request_id, []).append(delta)
        engine.scheduler.check_integrity()
    raise AssertionError("the engine does not come to an end")


def is_between_steps(engine: EngineCore) -> bool:
    """No step was launched that has yet to be accounted for."""
    return getattr(engine, "_under_way", None) is None


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]
