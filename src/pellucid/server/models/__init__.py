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

__all__ = ["Leases", "ModelStatus", "Models", "models_of", "receive", "receive_body", "take_model"]

T = TypeVar("T", bound=msgspec.Struct)


async def receive(request: Request, body_type: type[T]) -> tuple[Service, T]:
    """The checked body of `request`, and the model it is for. Raises BadRequest and its kin."""
    body = await receive_body(request, body_type)
    return await take_model(request, body), body


async def receive_body(request: Request, body_type: type[T]) -> T:
    """The body of `request`, of which the model has not been asked. Raises BadRequest."""
    models = models_of(request)
    config, limits = models.config, models.gateway.config.limits
    return await read(request, body_type, config.max_body_bytes, limits.body_timeout)


async def take_model(request: Request, body: msgspec.Struct) -> Service:
    """The model that `body` is for, whose limits it keeps. Raises BadRequest and its kin."""
    models = models_of(request)
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
    return service


def models_of(request: Request) -> Models:
    models: Models = request.app.state.models
    return models
