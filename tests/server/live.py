"""A real server on a thread: uvicorn, the real front end, and an engine that fakes its tokens."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anthropic
import httpx
import msgspec
import openai
from prometheus_client.parser import text_string_to_metric_families

from pellucid.config import EngineConfig, GatewayConfig, LifeSettings, ServerConfig, compose
from pellucid.engine.client import EngineClient
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.source import Source
from pellucid.frontend.supervisor import Supervisor
from pellucid.frontend.text import ModelText
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.models import Models
from pellucid.server.models.hosted import Engines
from pellucid.server.run import Server, bind, url_of
from pellucid.server.service import Service
from tests.frontend.tiny import fake_client, tiny_text

MODEL = "tiny"
T = TypeVar("T")


@dataclass
class Live:
    """A running server, with a client of its own."""

    url: str
    http: httpx.Client
    server: Server
    loop: asyncio.AbstractEventLoop
    models: Models

    @property
    def gateway(self) -> Gateway:
        return self.models.gateway

    @property
    def service(self) -> Service:
        """Of the first model, which has to be loaded."""
        service = self.models.default.service
        assert service is not None
        return service

    @property
    def llm(self) -> AsyncLLM:
        return self.service.llm

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

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result(60)

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


class FakeEngines(Engines):
    """Engines that fake their tokens. Without `clients` nobody replaces one that died."""

    def __init__(
        self,
        life: LifeSettings,
        make_client: Callable[[str], EngineClient],
        clients: Callable[[], EngineClient] | None,
        text: ModelText | None,
    ) -> None:
        self._life = life
        self._make_client = make_client
        self._clients = clients
        self._text = text or tiny_text()

    def llm(self, config: EngineConfig) -> AsyncLLM:
        client = self._make_client(config.model.served_model_name or "")
        retries = self._life.engine_retries if self._clients else 0
        return AsyncLLM(config, client, text=self._text, retries=retries)

    def identity(self, llm: AsyncLLM) -> str:
        return llm.model_name

    def supervisor(self, llm: AsyncLLM, on_restart: Callable[[], None]) -> Supervisor:
        kind = Supervisor if self._clients else Nobody
        return kind(
            llm,
            self._life.engine_restarts if self._clients else 0,
            make_client=self._clients,
            warm=False,
            on_restart=on_restart,
        )


class Nobody(Supervisor):
    """Lets dead engines rest."""

    async def run(self) -> None:
        await asyncio.Event().wait()


def named(config: EngineConfig, name: str) -> EngineConfig:
    model = msgspec.structs.replace(config.model, served_model_name=name)
    return msgspec.structs.replace(config, model=model)


@contextmanager
def live(
    server: ServerConfig | None = None,
    client: EngineClient | None = None,
    runner: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    clients: Callable[[], EngineClient] | None = None,
    text: ModelText | None = None,
    models: Sequence[str] = (MODEL,),
    make_client: Callable[[str], EngineClient] | None = None,
    **engine: Any,
) -> Iterator[Live]:
    """Serve until the block ends.

    `runner` goes to the FakeRunner, `gateway` to GatewayConfig by flat names, `engine` to
    EngineConfig; `clients` makes the engine that replaces one that died. `models` are the names of
    what is served, and `make_client` makes the engine of each name whenever it is loaded.
    """
    config = EngineConfig.of(**{"runner": "fake", **engine})
    started: concurrent.futures.Future[Live] = concurrent.futures.Future()

    def first_client(name: str) -> EngineClient:
        return client or fake_client(config, **(runner or {}))

    async def serve() -> None:
        listener = bind("127.0.0.1", 0)
        gate = Gateway(compose(GatewayConfig, {"warm_up": False, **(gateway or {})}))
        engines = FakeEngines(gate.config.life, make_client or first_client, clients, text)
        offers = [(Source(name, f"{name}.gguf", 0), named(config, name)) for name in models]
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(gate.close)
            served = Models(offers, server or ServerConfig(), gate, engines)
            stack.push_async_callback(served.close)
            await served.start()
            url = url_of(listener)
            http = httpx.Client(base_url=url, timeout=30)
            loop = asyncio.get_running_loop()

            def announce() -> None:
                started.set_result(Live(url, http, running, loop, served))

            running = Server(served, announce)
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


@contextmanager
def leaving(url: str, path: str, **body: Any) -> Iterator[None]:
    """A request whose client does not wait for its answer and hangs up when the block ends."""
    address, content = httpx.URL(url), json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(head.encode() + content)
        yield


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
