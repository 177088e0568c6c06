"""`pellucid serve` with the real model, as users meet it: a process, HTTP, the openai client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.model

NAME = "smollm2"


def serving(
    model: Path, *flags: str
) -> contextlib.AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """A server of one model; see `started`."""
    return started(str(model), "--served-model-name", NAME, *flags)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port; yields the curl line that it prints when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert process.stderr is not None
    try:
        printed = _printed_curl(process)
        # It logs every request: somebody has to read, or it waits for that.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield printed, process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _printed_curl(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([process.stderr], [], [], 0.2)[0]:
            said += os.read(process.stderr.fileno(), 65536).decode()
        if found := re.search(r"curl -N .*?}'\n", said, re.DOTALL):
            return found.group()
    raise AssertionError(f"the server did not become ready: {said}")


def base_url(curl: str) -> str:
    return re.findall(r"http://[\w.:]+", curl)[0]


@pytest.fixture(scope="module")
def curl(smollm2_path: Path) -> Iterator[str]:
    with serving(smollm2_path, "--max-num-seqs", "32") as (printed, _):
        yield printed


@pytest.fixture(scope="module")
def url(curl: str) -> str:
    return base_url(curl)


def gauge(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


async def eventually_idle(url: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        busy = [gauge(url, name) for name in (*names, "vllm:kv_cache_usage_perc")]
        if not any(busy):
            return True
        await asyncio.sleep(0.1)
    return False


def test_the_printed_curl_line_streams_an_answer(curl: str) -> None:
    # Long enough to see it stream; the answer has no limit but the model's own mind.
    shell = f"{curl.strip()} | head -n 60"
    answer = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    pieces = re.findall(r'"content":"([^"]*)"', answer)
    assert len(pieces) > 10
    assert len("".join(pieces).split()) > 5


def test_an_answer_makes_sense(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    done = client.completions.create(
        model=NAME, prompt="The capital of France is", max_tokens=6, temperature=0
    )
    assert "Paris" in done.choices[0].text


def test_thirty_two_concurrent_streams_of_the_openai_client(url: str) -> None:
    async def chat(client: openai.AsyncOpenAI, index: int, stream: bool) -> tuple[int, int]:
        messages = [{"role": "user", "content": f"Count upwards from {index}."}]
        options = {"model": NAME, "messages": messages, "max_tokens": 10 + index % 5}
        extra = {"ignore_eos": True}
        if not stream:
            done = await client.chat.completions.create(**options, extra_body=extra)
            assert done.choices[0].message.content
            assert done.choices[0].finish_reason == "length"
            return done.usage.prompt_tokens, done.usage.completion_tokens
        text, usage, reason = "", None, None
        async for chunk in await client.chat.completions.create(
            **options, extra_body=extra, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        assert text
        assert reason == "length"
        return usage.prompt_tokens, usage.completion_tokens

    async def complete(client: openai.AsyncOpenAI, index: int, stream: bool) -> tuple[int, int]:
        options = {"model": NAME, "prompt": f"Item {index}:", "max_tokens": 10 + index % 5}
        extra = {"ignore_eos": True}
        if not stream:
            done = await client.completions.create(**options, extra_body=extra)
            assert done.choices[0].text
            return done.usage.prompt_tokens, done.usage.completion_tokens
        usage = None
        async for chunk in await client.completions.create(
            **options, extra_body=extra, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
        return usage.prompt_tokens, usage.completion_tokens

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            calls = [
                (chat if index % 4 < 2 else complete)(client, index, index % 2 == 0)
                for index in range(32)
            ]
            for index, (prompt, answer) in enumerate(await asyncio.gather(*calls)):
                body: dict[str, object] = {"prompt": f"Item {index}:"}
                if index % 4 < 2:
                    content = f"Count upwards from {index}."
                    body = {"messages": [{"role": "user", "content": content}]}
                count = httpx.post(f"{url}/tokenize", json=body).json()["count"]
                assert (prompt, answer) == (count, 10 + index % 5)

    asyncio.run(run())


def test_a_repeated_prefix_is_reported_as_cached(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    prefix = [(31 * k) % 40_000 + 200 for k in range(1000)]
    cached = []
    for tail in ([5, 6, 7], [8, 9, 10]):
        done = client.completions.create(model=NAME, prompt=prefix + tail, max_tokens=2)
        cached.append(done.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 992]  # 62 full blocks of 16


def test_two_hundred_clients_that_hang_up_leave_nothing_behind(url: str) -> None:
    async def hang_up(client: httpx.AsyncClient, index: int) -> None:
        body = {"prompt": f"Chapter {index}", "max_tokens": 2000, "ignore_eos": True}
        body["stream"] = index % 2 == 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
                    assert response.status_code == 200
                    await response.aread()
                raise AssertionError("2,000 tokens for each of 200 clients within half a second")

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(hang_up(client, index) for index in range(200)))
        assert await eventually_idle(url, seconds=10)

    asyncio.run(run())
    began = time.monotonic()
    body = {"prompt": "Hello", "max_tokens": 1}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=30).status_code == 200
    assert time.monotonic() - began < 10  # at once, next to 200 answers of 2,000 tokens


def test_a_killed_engine_ends_streams_with_an_error_and_turns_health_to_503(
    smollm2_path: Path,
) -> None:
    with serving(smollm2_path) as (curl, server):
        url = base_url(curl)
        assert httpx.get(f"{url}/health").status_code == 200
        (engine,) = psutil.Process(server.pid).children()
        body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        seen: list[str] = []
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
            for line in response.iter_lines():
                if not seen:
                    os.kill(engine.pid, signal.SIGKILL)
                    killed = time.monotonic()
                seen.append(line)
        assert time.monotonic() - killed < 2
        assert any('"error"' in line for line in seen)
        assert httpx.get(f"{url}/health").status_code == 503
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 503


def test_a_stopped_server_leaves_no_engine_behind(smollm2_path: Path) -> None:
    with serving(smollm2_path) as (_, server):
        children = psutil.Process(server.pid).children()
        server.send_signal(signal.SIGINT)
        server.wait(timeout=15)
        _, left = psutil.wait_procs(children, timeout=5)
        assert left == []
