"""How the server fares: /version, /metrics, and a signpost at /."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid import __version__
from pellucid.server.metrics import TEXT_FORMAT
from pellucid.server.models import models_of
from pellucid.server.openapi import describe
from pellucid.server.reply import json_response
from pellucid.server.responses import Index, Load, Version

router = APIRouter()


@router.get("/", **describe(None, Index, errors=(401,)))
async def index(request: Request) -> Response:
    """What is served, and where to read on."""
    return json_response(Index(models_of(request).default.llm.model_name, __version__))


@router.get("/version", **describe(None, Version, errors=(401,)))
async def version() -> Response:
    """The version of pellucid."""
    return json_response(Version(__version__))


@router.get("/metrics", **describe(None, Load, text="Prometheus' format.", errors=(401,)))
async def metrics(request: Request) -> Response:
    """Prometheus metrics under vLLM's names; a summary with `Accept: application/json`."""
    service = models_of(request).default
    if "application/json" in request.headers.get("accept", ""):
        return json_response(service.load())
    return Response(service.metrics.render(), media_type=TEXT_FORMAT)
