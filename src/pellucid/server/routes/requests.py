"""GET /v1/requests/{id}/timeline: what happened to a request."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.server.models import models_of
from pellucid.server.observation import Timeline
from pellucid.server.openapi import describe
from pellucid.server.reply import json_response

router = APIRouter()


@router.get("/v1/requests/{id:path}/timeline", **describe(None, Timeline, errors=(401, 404)))
async def timeline(request: Request, id: str) -> Response:
    """Where a recent or running request's time went; `id` is its answer's, or X-Request-Id."""
    return json_response(await models_of(request).observation.timeline(id))
