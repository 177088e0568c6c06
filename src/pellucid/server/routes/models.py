"""GET /v1/models and /v1/models/{id}; POST /v1/models/load and /v1/models/unload."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.server.models import Models, ModelStatus, models_of, receive_body
from pellucid.server.openapi import USUAL_ERRORS, describe
from pellucid.server.protocol import ModelRequest
from pellucid.server.reply import json_response, unless_gone
from pellucid.server.responses import Model, ModelList

router = APIRouter()


@router.get("/v1/models", **describe(None, ModelList, errors=(401,)))
async def models(request: Request) -> Response:
    """The models that this server serves, whether loaded or not."""
    served = models_of(request)
    return json_response(ModelList([_model(served, status) for status in served.listing()]))


@router.post("/v1/models/load", **describe(ModelRequest, Model))
async def load(request: Request) -> Response:
    """Load a model; returns when it can answer."""
    served = models_of(request)
    name = (await receive_body(request, ModelRequest)).model
    return json_response(_model(served, await unless_gone(request.receive, served.load(name))))


@router.post("/v1/models/unload", **describe(ModelRequest, Model, errors=(*USUAL_ERRORS, 409)))
async def unload(request: Request) -> Response:
    """Unload a model that nobody uses; it is loaded again for whoever asks for it."""
    served = models_of(request)
    name = (await receive_body(request, ModelRequest)).model
    return json_response(_model(served, await served.unload(name)))


# A path parameter: names like "org/model" have slashes.
@router.get("/v1/models/{model_id:path}", **describe(None, Model, errors=(401, 404)))
async def model(request: Request, model_id: str) -> Response:
    """One model, by its name."""
    served = models_of(request)
    return json_response(_model(served, served.status(model_id)))


def _model(served: Models, status: ModelStatus) -> Model:
    return Model(
        id=status.name,
        created=served.created,
        root=status.source,
        status=status.state,
        max_model_len=status.max_model_len,
    )
