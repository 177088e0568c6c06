"""A benchmark of a running server, from settings to report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.bench.client import Outcome, first_model, open_client, stream_request
from pellucid.bench.load import LoadReport, arrival_times, parse_goodput, report, run_load
from pellucid.bench.prompts import (
    Prompt,
    random_token_prompts,
    random_word_prompts,
    read_dataset,
    request_body,
)
from pellucid.bench.settings import LoadSettings
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    import httpx

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
TAKE_TOKEN_IDS = {"pellucid", "vllm"}  # owned_by of servers whose completions accept token ids


def bench_server(
    settings: LoadSettings, api_key: str | None, on_done: Callable[[], None] = lambda: None
) -> LoadReport:
    """Run the load to its end; `on_done` is called after each request.

    Raises:
        ConfigError: a setting or the dataset is wrong.
        PellucidError: the server does not answer, or not a single warm-up request succeeds.
    """
    goodput = parse_goodput(settings.goodput)
    return asyncio.run(_bench(settings, api_key, goodput, on_done))


async def _bench(
    settings: LoadSettings,
    api_key: str | None,
    goodput: dict[str, float],
    on_done: Callable[[], None],
) -> LoadReport:
    path = PATHS[settings.endpoint]
    arrivals = arrival_times(
        settings.num_prompts, settings.request_rate, settings.burstiness, settings.seed
    )
    async with open_client(settings.base_url, api_key, settings.timeout) as client:
        warmups, bodies = await _bodies(client, settings)
        await _warm_up(client, path, warmups)
        outcomes, seconds, cpu_seconds = await run_load(
            client, path, bodies, arrivals, settings.max_concurrency, on_done
        )
    return report(outcomes, seconds, cpu_seconds, goodput)


async def _bodies(
    client: httpx.AsyncClient, settings: LoadSettings
) -> tuple[list[bytes], list[bytes]]:
    """Encoded requests: to warm up, and to measure."""
    model, owner = settings.model, ""
    if model is None or settings.prompts == "auto":
        first, owner = await first_model(client)
        model = model or first
    common: dict[str, Any] = {
        "model": model,
        "max_tokens": settings.output_len,
        "temperature": settings.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.ignore_eos:
        common["ignore_eos"] = True
    prompts = _prompts(settings, owner)
    bodies = [request_body(prompt, settings.endpoint, common) for prompt in prompts]
    return bodies[: settings.warmup], bodies[settings.warmup :]


def _prompts(settings: LoadSettings, owner: str) -> list[Prompt]:
    count = settings.warmup + settings.num_prompts
    if settings.dataset is not None:
        return read_dataset(Path(settings.dataset), count)
    as_ids = settings.prompts == "tokens" or (
        settings.prompts == "auto"
        and settings.endpoint == "completions"
        and owner in TAKE_TOKEN_IDS
    )
    if as_ids:
        return random_token_prompts(
            count, settings.input_len, settings.vocab_size, settings.shared_prefix, settings.seed
        )
    return random_word_prompts(count, settings.input_len, settings.shared_prefix, settings.seed)


async def _warm_up(client: httpx.AsyncClient, path: str, bodies: list[bytes]) -> None:
    """Requests one after another, so that a wrong model or URL is told before the load."""
    failed = []
    for body in bodies:
        outcome = Outcome(due=0.0)
        await stream_request(client, path, body, outcome)
        if outcome.error is not None:
            failed.append(outcome.error)
    if failed and len(failed) == len(bodies):
        raise PellucidError(f"the warm-up request failed: {failed[0]}")


def plain_settings(settings: LoadSettings) -> dict[str, Any]:
    """For a JSON report, which has no infinity."""
    named: dict[str, Any] = msgspec.to_builtins(settings)
    return {k: "inf" if v == float("inf") else v for k, v in named.items()}
