"""`serve` as a process: readiness, ports, signals."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from pellucid.config import EngineConfig, ServerConfig
from pellucid.errors import ConfigError, ModelError
from pellucid.server.run import bind, serve, url_of

SCRIPT = """
import sys
from pellucid.config import EngineConfig, ServerConfig
from pellucid.server.run import serve

config = EngineConfig.of(model=sys.argv[1], runner="fake")
serve(config, ServerConfig(port=0), lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@contextmanager
def serving(model: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(model)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_when_it_says_so_and_ends_tidily(smollm2_path: Path, number: int) -> None:
    with serving(smollm2_path) as (url, process):
        assert httpx.get(f"{url}/health").status_code == 200
        body = {"prompt": "Once", "max_tokens": 4}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        children = psutil.Process(process.pid).children()
        assert children
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert out == "ended\n"
        assert psutil.wait_procs(children, timeout=30)[1] == []


def test_the_server_never_imports_torch() -> None:
    check = "import sys, pellucid.server.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_taken_port_is_a_clear_error_before_any_model_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = EngineConfig.of(model="/nowhere/model.gguf")
        with pytest.raises(ConfigError, match=f"port {port}.*in use") as caught:
            serve(config, ServerConfig(port=port))
        assert caught.value.param == "port"


def test_an_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(ConfigError) as caught:
        bind("no.such.host.invalid", 0)
    assert caught.value.param == "host"


def test_a_model_that_cannot_be_loaded_is_an_error_and_frees_the_port() -> None:
    config = EngineConfig.of(model="/nowhere/model.gguf", runner="fake")
    ready: list[str] = []
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    errors: list[BaseException] = []

    def run() -> None:  # on a thread, where no signal can be caught
        try:
            serve(config, ServerConfig(port=port), ready.append)
        except ModelError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert len(errors) == 1
    assert ready == []
    bind("127.0.0.1", port).close()


def test_answers_leave_without_waiting_for_acknowledgements() -> None:
    async def delays() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(on_client, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return await accepted

    assert asyncio.run(delays())


def test_urls_name_the_real_port() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with bind("::1", 0) as listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
