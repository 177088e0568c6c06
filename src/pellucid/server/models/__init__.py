"""The models behind one server, and the way from a request to the one it names."""

from __future__ import annotations

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
    timeout = getattr(body, "timeout", None)
    service = await models.take(request, getattr(body, "model", None), timeout)
    service.check(body)
    return service, body


def models_of(request: Request) -> Models:
    models: Models = request.app.state.models
    return models
