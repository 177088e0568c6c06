"""GET /v1/models and /v1/models/{id}; what loads and unloads models, and LoRA adapters."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.server.models import Models, ModelStatus, models_of, receive_body
from pellucid.server.models.adapters import load_adapter, unload_adapter
from pellucid.server.openapi import USUAL_ERRORS, describe
from pellucid.server.protocol import LoadLora, ModelRequest, UnloadLora
from pellucid.server.reply import json_response, unless_gone
from pellucid.server.responses import Deleted, Model, ModelList

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


@router.post("/v1/load_lora_adapter", **describe(LoadLora, Model, errors=(*USUAL_ERRORS, 403)))
async def load_lora(request: Request) -> Response:
    """Load a LoRA adapter and serve it as a model; needs --allow-lora-updates."""
    served, body = models_of(request), await receive_body(request, LoadLora)
    loading = load_adapter(served, body.lora_name, body.lora_path)
    return json_response(_model(served, await unless_gone(request.receive, loading)))


@router.post(
    "/v1/unload_lora_adapter", **describe(UnloadLora, Deleted, errors=(*USUAL_ERRORS, 403))
)
async def unload_lora(request: Request) -> Response:
    """Serve a LoRA adapter no more; what it is answering already is answered."""
    body = await receive_body(request, UnloadLora)
    unload_adapter(models_of(request), body.lora_name)
    return json_response(Deleted(body.lora_name))


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
        parent=status.parent,
        status=status.state,
        max_model_len=status.max_model_len,
    )
