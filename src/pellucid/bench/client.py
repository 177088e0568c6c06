"""A light streaming client of the OpenAI API that keeps the time of every chunk.

The client must not be the bottleneck: request bodies are encoded before the clock starts, events
are cut from the raw bytes, and only the few fields that are counted are decoded. Its own CPU share
is part of the report (see load.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.errors import ConfigError, PellucidError

if TYPE_CHECKING:
    import httpx

MAX_REASON = 160  # characters of a failure's reason


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str | None:
        """The text it brings, of either endpoint; reasoning counts."""
        if self.delta is None:
            return self.text
        return self.delta.content or self.delta.reasoning_content


class Usage(msgspec.Struct):
    """Token counts as the server gives them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    """One event of a stream: as much of it as is counted."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


@dataclass(slots=True)
class Outcome:
    """One request; times are `time.perf_counter()` seconds."""

    due: float  # when the arrival process wanted it sent
    sent: float = 0.0
    finished: float = 0.0
    text_times: list[float] = field(default_factory=list)  # one per chunk that brought text
    usage: Usage | None = None
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        """As the server counts; without its usage, chunks stand for tokens."""
        return self.usage.completion_tokens if self.usage else len(self.text_times)

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first text (to the end, if there was none at all)."""
        return (self.text_times[0] if self.text_times else self.finished) - self.sent

    @property
    def e2e(self) -> float:
        """Seconds from sending to the last byte."""
        return self.finished - self.sent

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first; None for a single token."""
        rest = self.output_tokens - 1
        return (self.e2e - self.ttft) / rest if rest > 0 else None


class SSEParser:
    """Cuts `data:` payloads out of a byte stream; each event of this API is one line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`, without the terminator's blank lines and comments."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def open_client(base_url: str, api_key: str | None, timeout: float) -> httpx.AsyncClient:
    """An HTTP client with as many connections as needed. Raises ConfigError without httpx."""
    try:
        import httpx
    except ImportError:
        raise ConfigError(
            "this command needs httpx: pip install 'pellucid[bench]'", param="base_url"
        ) from None
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return httpx.AsyncClient(
        base_url=base_url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=httpx.Timeout(timeout, connect=min(timeout, 30.0)),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


async def first_model(client: httpx.AsyncClient) -> tuple[str, str]:
    """Id and owner of the first model that the server lists.

    Raises PellucidError if the server cannot be reached or lists none.
    """
    import httpx

    try:
        answer = await client.get("/v1/models")
        answer.raise_for_status()
        model = answer.json()["data"][0]
        return str(model["id"]), str(model.get("owned_by", ""))
    except httpx.HTTPError as error:
        raise PellucidError(f"{client.base_url} does not answer: {_reason(error)}") from None
    except (ValueError, LookupError, TypeError):
        raise PellucidError(f"{client.base_url}v1/models lists no model: give --model") from None


async def stream_request(
    client: httpx.AsyncClient, path: str, body: bytes, outcome: Outcome
) -> None:
    """Send one request and fill `outcome`, with the reason in `error` if it fails."""
    import httpx

    outcome.sent = time.perf_counter()
    try:
        async with client.stream("POST", path, content=body) as response:
            if response.status_code != 200:
                message = server_message(await response.aread())
                outcome.error = f"HTTP {response.status_code}: {message}"
            elif not await _read_stream(response, outcome) and outcome.error is None:
                outcome.error = "the stream ended early"
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        outcome.error = _reason(error)
    outcome.finished = time.perf_counter()


async def _read_stream(response: httpx.Response, outcome: Outcome) -> bool:
    """Read to the end; return whether the answer came to an end of its own.

    Past [DONE], too: a connection whose response was not read to its end cannot be used again.
    """
    parser = SSEParser()
    complete = False
    async for data in response.aiter_raw():
        now = time.perf_counter()
        for payload in parser.feed(data):
            if payload == b"[DONE]":
                complete = True
                continue
            chunk = _decode_chunk(payload)
            if chunk.error is not None:
                outcome.error = f"in the stream: {server_message(payload)}"
                return False
            outcome.usage = chunk.usage or outcome.usage
            for choice in chunk.choices:
                if choice.content:
                    outcome.text_times.append(now)
                complete = complete or choice.finish_reason is not None
    return complete


def server_message(body: bytes) -> str:
    """The message inside an OpenAI error body, or the body itself, cut short."""
    try:
        error = msgspec.json.decode(body)["error"]
        message = error["message"] if isinstance(error, dict) else str(error)
    except (msgspec.MsgspecError, LookupError, TypeError):
        message = body.decode("utf-8", "replace")
    return " ".join(message.split())[:MAX_REASON]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")[:MAX_REASON]
