"""What probes ask, without a key: /live, /ready, and /health, which other servers call that."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.errors import EngineDead, ShuttingDown
from pellucid.server.models import models_of
from pellucid.server.openapi import describe
from pellucid.server.reply import json_response
from pellucid.server.responses import Health

router = APIRouter()


@router.get("/live", **describe(None, Health, errors=()))
async def live() -> Response:
    """200 as long as the server itself works; a dead engine is restarted from within."""
    return json_response(Health())


@router.get("/ready", **describe(None, Health, errors=(503,)))
async def ready(request: Request) -> Response:
    """200 while requests are taken; 503 while the engine is dead and once the server drains.

    With several models it is the first one's engine; unloaded is not dead.
    """
    models = models_of(request)
    if models.gateway.draining:
        raise ShuttingDown("The server is shutting down.")
    if not models.is_ready:
        service = models.default.service
        hint = service.llm.retry_after if service else None
        raise EngineDead("The engine is dead.", retry_after=hint)
    return json_response(Health())


@router.get("/health", **describe(None, Health, errors=(503,)))
async def health(request: Request) -> Response:
    """The same as /ready."""
    return await ready(request)
