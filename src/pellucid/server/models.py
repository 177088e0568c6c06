"""The models behind one server, and the way from a request to the one it names."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from pellucid.errors import ModelNotFound
from pellucid.server.body import read
from pellucid.server.service import Service

T = TypeVar("T", bound=msgspec.Struct)


class Models:
    """What is served; in `app.state.models`."""

    def __init__(self, service: Service) -> None:
        self.default = service  # answers requests that name no model

    def close(self) -> None:
        """End what looks on. Idempotent."""
        self.default.close()

    @property
    def names(self) -> list[str]:
        """All that a request may name."""
        return [self.default.llm.model_name]

    async def take(self, request: Request, name: str | None) -> Service:
        """The model that `request` names, ready to answer it. Raises ModelNotFound."""
        if name is not None and name not in self.names:
            raise ModelNotFound(
                f"The model {name!r} does not exist; this server has {_listed(self.names)}.",
                param="model",
                code="model_not_found",
            )
        return self.default


async def receive(request: Request, body_type: type[T]) -> tuple[Service, T]:
    """The checked body of `request`, and the model it is for. Raises BadRequest and its kin."""
    body = await receive_body(request, body_type)
    return await take_model(request, body), body


async def receive_body(request: Request, body_type: type[T]) -> T:
    """The body of `request`, of which the model has not been asked. Raises BadRequest."""
    models = models_of(request)
    config, limits = models.default.config, models.default.gateway.config.limits
    return await read(request, body_type, config.max_body_bytes, limits.body_timeout)


async def take_model(request: Request, body: msgspec.Struct) -> Service:
    """The model that `body` is for, to whose limits it keeps. Raises BadRequest and its kin."""
    service = await models_of(request).take(request, getattr(body, "model", None))
    service.check(body)
    return service


def models_of(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
