"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.server.models import models_of
from pellucid.server.openapi import describe
from pellucid.server.reply import json_response
from pellucid.server.responses import Model, ModelList
from pellucid.server.service import Service

router = APIRouter()


@router.get("/v1/models", **describe(None, ModelList, errors=(401,)))
async def models(request: Request) -> Response:
    """The models that this server serves."""
    return json_response(ModelList([_model(models_of(request).default)]))


# A path parameter: names like "org/model" have slashes.
@router.get("/v1/models/{model_id:path}", **describe(None, Model, errors=(401, 404)))
async def model(request: Request, model_id: str) -> Response:
    """One model, by its name."""
    return json_response(_model(await models_of(request).take(request, model_id)))


def _model(service: Service) -> Model:
    return Model(
        id=service.llm.model_name, created=service.created, max_model_len=service.max_model_len
    )
