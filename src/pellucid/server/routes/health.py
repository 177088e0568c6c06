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
    """200 while requests are taken; 503 while the engine is dead and once the server drains."""
    service = models_of(request).default
    if service.gateway.draining:
        raise ShuttingDown("The server is shutting down.")
    if not service.gateway.is_ready(service.llm):
        raise EngineDead("The engine is dead.", retry_after=service.llm.retry_after)
    return json_response(Health())


@router.get("/health", **describe(None, Health, errors=(503,)))
async def health(request: Request) -> Response:
    """The same as /ready."""
    return await ready(request)
