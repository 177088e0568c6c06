"""The HTTP application: routes, error handlers and middleware around one `AsyncLLM`."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from pellucid import __version__
from pellucid.config import EngineConfig, GatewayConfig, ServerConfig
from pellucid.errors import PellucidError
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.server import openapi
from pellucid.server.envelope import Envelope
from pellucid.server.errors import on_http_exception, on_pellucid_error
from pellucid.server.gateway.cors import allow_origins
from pellucid.server.gateway.gate import Gate
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.models import Models
from pellucid.server.observation import Observer
from pellucid.server.routes import (
    chat,
    completions,
    generate,
    health,
    models,
    ollama,
    requests,
    system,
    tokens,
)
from pellucid.server.service import Service


def build_app(
    llm: AsyncLLM,
    config: ServerConfig | None = None,
    engine_config: EngineConfig | None = None,
    gateway: Gateway | None = None,
) -> FastAPI:
    """Put `llm`, which must have been started, behind HTTP. The caller closes both.

    `app.state.models.close()` ends what looks on. Raises ConfigError for a setting that is wrong.
    """
    app = FastAPI(
        title="pellucid",
        version=__version__,
        docs_url=None,  # the pages would load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    gateway = gateway or Gateway(GatewayConfig())
    service = Service(llm, config or ServerConfig(), engine_config or llm.config, gateway)
    app.state.models = Models(service)
    app.add_exception_handler(PellucidError, on_pellucid_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_middleware(Gate, gateway=gateway)  # later ones lie around earlier ones
    app.add_middleware(Envelope)
    app.add_middleware(Observer, observation=service.observation)  # around all but CORS
    allow_origins(app, gateway.config.access.cors_origin)
    for routes in (chat, completions, generate, tokens, models, requests, system, health, ollama):
        app.include_router(routes.router)
    openapi.install(app)
    return app
