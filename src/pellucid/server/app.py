"""The HTTP application: routes, error handlers and middleware around the models."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from pellucid import __version__
from pellucid.errors import PellucidError
from pellucid.server import openapi
from pellucid.server.envelope import Envelope
from pellucid.server.errors import on_http_exception, on_pellucid_error
from pellucid.server.gateway.cors import allow_origins
from pellucid.server.gateway.gate import Gate
from pellucid.server.models import Leases, Models
from pellucid.server.observation import Observer
from pellucid.server.page import Page
from pellucid.server.routes import (
    anthropic,
    chat,
    completions,
    embeddings,
    generate,
    health,
    models,
    ollama,
    ollama_embed,
    requests,
    responses_api,
    system,
    tokens,
    xray,
)
from pellucid.server.xray import Xrays

ROUTES = (
    chat,
    completions,
    responses_api,
    embeddings,
    anthropic,
    ollama,
    ollama_embed,
    generate,
    tokens,
    models,
    requests,
    system,
    health,
)


def build_app(served: Models) -> FastAPI:
    """Put models behind HTTP. The caller starts and closes them."""
    app = FastAPI(
        title="pellucid",
        version=__version__,
        docs_url=None,  # the pages would load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.models = served
    app.add_exception_handler(PellucidError, on_pellucid_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_middleware(Leases)  # later ones lie around earlier ones
    app.add_middleware(Gate, gateway=served.gateway)
    if served.config.page:
        app.add_middleware(Page)  # before the gate: a browser has no key to bring
    app.add_middleware(Envelope)
    app.add_middleware(Observer, observation=served.observation)  # around all but CORS
    allow_origins(app, served.gateway.config.access.cors_origin)
    for routes in ROUTES:
        app.include_router(routes.router)
        _answer_heads(app, routes.router)
    if served.config.page:
        app.state.xrays = Xrays(served)
        app.include_router(xray.router)
    openapi.install(app)
    return app


def _answer_heads(app: FastAPI, router: APIRouter) -> None:
    """What can be had by GET can be asked for by HEAD, as probes and clients of Ollama do."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
