"""How the server fares: /version, /metrics, and a signpost at /."""

from __future__ import annotations

import psutil
from fastapi import APIRouter, Request, Response

from pellucid import __version__
from pellucid.server.exposition import TEXT_FORMAT
from pellucid.server.models import models_of
from pellucid.server.openapi import describe
from pellucid.server.reply import json_response
from pellucid.server.responses import Index, Load, ServerLoad, Version

router = APIRouter()


@router.get("/", **describe(None, Index, errors=(401,)))
async def index(request: Request) -> Response:
    """What is served, and where to read on."""
    return json_response(Index(models_of(request).default_name, __version__))


@router.get("/version", **describe(None, Version, errors=(401,)))
async def version() -> Response:
    """The version of pellucid."""
    return json_response(Version(__version__))


@router.get("/metrics", **describe(None, Load, text="Prometheus' format.", errors=(401,)))
async def metrics(request: Request) -> Response:
    """Prometheus metrics under vLLM's names; a summary with `Accept: application/json`."""
    exposition = models_of(request).exposition
    if "application/json" not in request.headers.get("accept", ""):
        return Response(exposition.render(), media_type=TEXT_FORMAT)
    return json_response(
        Load(
            active_streams=exposition.num_open(),
            tokens_per_sec=exposition.tokens_per_second(),
            cpu_percent=psutil.cpu_percent(),
            ram_percent=psutil.virtual_memory().percent,
        )
    )


@router.get("/load", **describe(None, ServerLoad, errors=(401,)))
async def load(request: Request) -> Response:
    """How many requests are being answered, as vLLM tells it to load balancers."""
    return json_response(ServerLoad(models_of(request).gateway.num_active))
