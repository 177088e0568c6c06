"""The models behind one server, and the way from a request to the one it names."""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec
from starlette.requests import Request

from pellucid.server.body import read
from pellucid.server.models.hosted import ModelStatus
from pellucid.server.models.registry import Leases, Models
from pellucid.server.service import Service

__all__ = ["Leases", "ModelStatus", "Models", "models_of", "receive"]

T = TypeVar("T", bound=msgspec.Struct)


async def receive(request: Request, body_type: type[T]) -> tuple[Service, T]:
    """The checked body of `request`, and the model it is for. Raises BadRequest and its kin."""
    models = models_of(request)
    config, limits = models.config, models.gateway.config.limits
    body = await read(request, body_type, config.max_body_bytes, limits.body_timeout)
    name, timeout = getattr(body, "model", None), getattr(body, "timeout", None)
    if timeout is None or not timeout > 0:  # the latter is for the model's checks to refuse
        service = await models.take(request, name)
    else:
        began = time.monotonic()
        service = await models.take(request, name, timeout)
        # What loading took is gone for the answer.
        left = max(timeout - (time.monotonic() - began), 1e-3)
        msgspec.structs.force_setattr(body, "timeout", left)
    service.check(body)
    return service, body


def models_of(request: Request) -> Models:
    models: Models = request.app.state.models
    return models
