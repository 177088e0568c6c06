"""`pellucid serve`: the OpenAI API over HTTP."""

from __future__ import annotations

from pellucid.cli.options import configured
from pellucid.config import EngineConfig, GatewayConfig, ServerConfig


@configured()
def serve(engines: list[EngineConfig], server: ServerConfig, gateway: GatewayConfig) -> None:
    """Serve a model, or several by name, over the OpenAI API.

    Downloads the models if need be, loads the first, and prints where it listens once that can
    answer. Others are loaded when they are asked for. LoRA adapters are the first model's.
    """
    import logging

    from pellucid.cli.console import notes
    from pellucid.cli.download import fetch_all
    from pellucid.observe.logs import configure
    from pellucid.server.run import serve as run_server

    configure(server.log_level, server.observe.log_format)
    files = [fetch_all(engine) for engine in engines]
    models = [e.model.served_model_name or f.name for e, f in zip(engines, files, strict=True)]
    model = models[0]
    logging.getLogger(__name__).info("loading %s", model)  # seen where there is no terminal
    status = notes().status(f"loading {model}")

    def on_ready(url: str) -> None:
        status.stop()
        needs_key = bool(gateway.access.api_key or gateway.access.api_key_file)
        _greet(url, models, needs_key=needs_key, has_page=server.page)

    others = [_without_adapters(engine) for engine in engines[1:]]
    with status:
        run_server(engines[0], server, on_ready, gateway, others=others)


def _without_adapters(engine: EngineConfig) -> EngineConfig:
    """LoRA adapters are for one model, and settings are the same for all."""
    from msgspec.structs import replace

    return replace(engine, model=replace(engine.model, lora=[]))


def _greet(url: str, models: list[str], *, needs_key: bool, has_page: bool) -> None:
    """Where it listens, and a first request to paste."""
    import json
    import shlex

    from pellucid.cli.console import notes

    model, *others = models
    also = f"Loaded when asked for: {', '.join(others)}\n" if others else ""
    page = f"Chat with it and watch it work: {url}/\n" if has_page else ""
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    body = json.dumps({"model": model, "stream": True, "messages": question})
    key = '  -H "Authorization: Bearer $API_KEY" \\\n' if needs_key else ""
    notes().print(
        f"{model} is ready at {url}/v1\n{page}{also}\n"
        f"curl -N {url}/v1/chat/completions \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"{key}"
        f"  -d {shlex.quote(body)}\n",
        markup=False,
        soft_wrap=True,
    )
