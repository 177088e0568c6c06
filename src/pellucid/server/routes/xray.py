"""The routes under /xray: what the page asks besides the APIs. Not a stable API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from msgspec import Meta

from pellucid.server.load import MAX_CLIENTS, Load, LoadRuns
from pellucid.server.models import receive
from pellucid.server.protocol import Body, Name
from pellucid.server.reply import json_response, unless_gone
from pellucid.server.xray import Xrays

router = APIRouter(include_in_schema=False)


class LoadRequest(Body):
    """Body of POST /xray/load."""

    clients: Annotated[int, Meta(ge=1, le=MAX_CLIENTS)]
    model: Name | None = None


@router.get("/xray/events")
async def events(request: Request, model: str | None = None) -> Response:
    """An engine's steps as server-sent events, ten a second."""
    return _xrays(request).open(model)


@router.get("/xray/export")
async def export(request: Request, model: str | None = None) -> Response:
    """The steps that are kept while a page is open, as a trace for ui.perfetto.dev."""
    return _xrays(request).export(model)


@router.post("/xray/load")
async def load(request: Request) -> Response:
    """Let synthetic clients ask the engine at once; who hangs up ends it. One at a time."""
    service, asked = await receive(request, LoadRequest)
    xrays = _xrays(request)
    if xrays.load is not None and xrays.load.is_running:
        raise LoadRuns("A load is under way already.", code="load_runs")
    xrays.load = running = Load(asked.clients)
    await unless_gone(request.receive, running.run(request, service, asked.model))
    return json_response(running)


def _xrays(request: Request) -> Xrays:
    xrays: Xrays = request.app.state.xrays
    return xrays
