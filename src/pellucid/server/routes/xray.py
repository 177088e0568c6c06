"""GET /xray/events and POST /xray/load: what the page asks besides the APIs. Not a stable API."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from pellucid.server.job import Tally
from pellucid.server.models import receive
from pellucid.server.params import generate_params
from pellucid.server.protocol import Body, Name
from pellucid.server.reply import whole
from pellucid.server.xray import LoadRuns, Xrays, load_prompts, load_request

router = APIRouter(include_in_schema=False)


class LoadRequest(Body):
    """Body of POST /xray/load."""

    clients: Annotated[int, Meta(ge=1, le=32)]
    model: Name | None = None


class LoadDone(msgspec.Struct):
    """All clients have been answered."""

    clients: int
    completion_tokens: int
    seconds: float


@router.get("/xray/events")
async def events(request: Request, model: str | None = None) -> Response:
    """An engine's steps, requests and KV blocks as server-sent events, ten a second."""
    return _xrays(request).open(model)


@router.post("/xray/load")
async def load(request: Request) -> Response:
    """Let synthetic clients ask the engine at once; who hangs up ends it. One at a time."""
    service, asked = await receive(request, LoadRequest)
    xrays = _xrays(request)
    if xrays.has_load:
        raise LoadRuns("A load is under way already.", code="load_runs")
    xrays.has_load = True
    try:
        body = load_request(service, asked.model)
        prompts, begin = load_prompts(asked.clients), time.monotonic()
        job = await service.open(
            request, body, generate_params(body), prompts, kind="load", prompt_field="clients"
        )

        async def answer() -> LoadDone:
            tally = Tally(job)
            for delta in await job.collect():
                tally.add(delta)
            seconds = time.monotonic() - begin
            return LoadDone(asked.clients, tally.usage().completion_tokens, round(seconds, 3))

        return await whole(request, job, answer())
    finally:
        xrays.has_load = False


def _xrays(request: Request) -> Xrays:
    xrays: Xrays = request.app.state.xrays
    return xrays
