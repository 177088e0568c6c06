"""A real server on a thread: uvicorn, the real front end, and an engine that fakes its tokens."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anthropic
import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from pellucid.config import EngineConfig, GatewayConfig, ServerConfig, compose
from pellucid.engine.client import EngineClient
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.supervisor import Supervisor
from pellucid.frontend.text import ModelText
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.run import Server, bind, url_of
from tests.frontend.tiny import fake_client, tiny_text

MODEL = "tiny"
T = TypeVar("T")


@dataclass
class Live:
    """A running server, with a client of its own."""

    url: str
    http: httpx.Client
    llm: AsyncLLM
    server: Server
    loop: asyncio.AbstractEventLoop
    gateway: Gateway

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def openai(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def anthropic(self, api_key: str = "none") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=api_key, max_retries=0)

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` on the server's event loop."""

        async def on_loop() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result(10)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics."""
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise KeyError(name)

    def is_idle(self) -> bool:
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any(self.metric(f"vllm:{name}") for name in names)


@contextmanager
def live(
    server: ServerConfig | None = None,
    client: EngineClient | None = None,
    runner: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    clients: Callable[[], EngineClient] | None = None,
    text: ModelText | None = None,
    **engine: Any,
) -> Iterator[Live]:
    """Serve until the block ends.

    `runner` goes to the FakeRunner, `gateway` to GatewayConfig by flat names, `engine` to
    EngineConfig; `clients` makes the engine that replaces one that died.
    """
    config = EngineConfig.of(**{"runner": "fake", **engine})
    started: concurrent.futures.Future[Live] = concurrent.futures.Future()

    async def serve() -> None:
        listener = bind("127.0.0.1", 0)
        gate = Gateway(compose(GatewayConfig, gateway or {}))
        life = gate.config.life
        async with contextlib.AsyncExitStack() as stack:
            llm = await stack.enter_async_context(
                AsyncLLM(
                    config,
                    client or fake_client(config, **(runner or {})),
                    text=text or tiny_text(),
                    retries=life.engine_retries if clients else 0,
                )
            )
            if clients:
                gate.supervisor = Supervisor(
                    llm,
                    life.engine_restarts,
                    make_client=clients,
                    warm=False,
                    on_restart=gate.count_restart,
                )
                supervising = asyncio.create_task(gate.supervisor.run())
                stack.callback(supervising.cancel)
            stack.push_async_callback(gate.close)
            url = url_of(listener)
            http = httpx.Client(base_url=url, timeout=30)
            loop = asyncio.get_running_loop()

            def announce() -> None:
                started.set_result(Live(url, http, llm, running, loop, gate))

            running = Server(llm, server or ServerConfig(), announce, gate)
            with http:
                await running.serve(sockets=[listener])

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        site = started.result(30)
        yield site
    finally:
        if started.done() and started.exception() is None:
            site.loop.call_soon_threadsafe(site.server.stop)
        thread.join(20)


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
