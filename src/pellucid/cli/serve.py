"""`pellucid serve`: the OpenAI API over HTTP."""

from __future__ import annotations

from pellucid.cli.options import configured
from pellucid.config import EngineConfig, GatewayConfig, ServerConfig


@configured()
def serve(engine: EngineConfig, server: ServerConfig, gateway: GatewayConfig) -> None:
    """Serve a model over the OpenAI API.

    Downloads the model if need be, loads it, and prints where it listens once it can answer.
    """
    import logging

    from pellucid.cli.console import notes
    from pellucid.cli.download import fetch
    from pellucid.observe.logs import configure
    from pellucid.server.run import serve as run_server

    configure(server.log_level, server.observe.log_format)
    files = fetch(engine.model)
    model = engine.model.served_model_name or files.name
    logging.getLogger(__name__).info("loading %s", model)  # seen where there is no terminal
    status = notes().status(f"loading {model}")

    def on_ready(url: str) -> None:
        status.stop()
        _greet(url, model, needs_key=bool(gateway.access.api_key or gateway.access.api_key_file))

    with status:
        run_server(engine, server, on_ready, gateway)


def _greet(url: str, model: str, *, needs_key: bool) -> None:
    """Where it listens, and a first request to paste."""
    import json
    import shlex

    from pellucid.cli.console import notes

    question = [{"role": "user", "content": "Why is the sky blue?"}]
    body = json.dumps({"model": model, "stream": True, "messages": question})
    key = '  -H "Authorization: Bearer $API_KEY" \\\n' if needs_key else ""
    notes().print(
        f"{model} is ready at {url}/v1\n\n"
        f"curl -N {url}/v1/chat/completions \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"{key}"
        f"  -d {shlex.quote(body)}\n",
        markup=False,
        soft_wrap=True,
    )
