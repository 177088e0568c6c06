"""Whom `pellucid chat --url` talks to: any server of the OpenAI API."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.bench.client import Chunk, SSEParser, Usage, first_model, open_client, server_message
from pellucid.cli.answer import Answer
from pellucid.errors import BadRequest, PellucidError
from pellucid.sampling_params import SamplingParams

if TYPE_CHECKING:
    import httpx

TIMEOUT = 600.0  # seconds without a byte
OPENAI_FIELDS = frozenset(
    {"max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop"}
)


class RemotePartner:
    """A conversation partner behind HTTP; an async context manager."""

    def __init__(self, url: str, api_key: str | None, params: SamplingParams) -> None:
        self.name = url
        self._client = open_client(url, api_key, TIMEOUT)
        self._params = params
        self._model = ""

    async def __aenter__(self) -> RemotePartner:
        try:
            self._model, _ = await first_model(self._client)
        except PellucidError:
            await self._client.aclose()
            raise
        self.name = f"{self._model} at {self.name}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def answer(
        self, messages: list[dict[str, Any]], on_text: Callable[[str], None]
    ) -> Answer:
        """Stream one answer.

        Raises:
            BadRequest: the server refused the request.
            PellucidError: it failed, or the connection did.
        """
        import httpx

        begin = time.perf_counter()
        first: float | None = None
        pieces: list[str] = []
        usage, reason = Usage(), None
        try:
            async for chunk in self._chunks(messages):
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    if text := choice.content:
                        first = first or time.perf_counter()
                        pieces.append(text)
                        on_text(text)
        except httpx.HTTPError as error:
            raise PellucidError(f"the connection failed: {error or type(error).__name__}") from None
        return _answer("".join(pieces), reason, usage, begin, first)

    async def _chunks(self, messages: list[dict[str, Any]]) -> AsyncIterator[Chunk]:
        body = {
            "model": self._model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling_fields(),
        }
        parser = SSEParser()
        content = msgspec.json.encode(body)
        async with self._client.stream("POST", "/v1/chat/completions", content=content) as response:
            await _check_status(response)
            async for data in response.aiter_raw():
                for payload in parser.feed(data):
                    if payload != b"[DONE]":
                        yield _checked(payload)

    def _sampling_fields(self) -> dict[str, Any]:
        """What OpenAI itself knows always, what only its kin know when it was asked for."""
        fields = msgspec.structs.asdict(self._params)
        usual = msgspec.structs.asdict(SamplingParams())
        return {
            name: value
            for name, value in fields.items()
            if value != usual[name] or (name in OPENAI_FIELDS and value not in (None, []))
        }


async def _check_status(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    message = server_message(await response.aread())
    refused = 400 <= response.status_code < 500
    raise (BadRequest if refused else PellucidError)(f"HTTP {response.status_code}: {message}")


def _checked(payload: bytes) -> Chunk:
    chunk = msgspec.json.decode(payload, type=Chunk)
    if chunk.error is not None:
        raise PellucidError(server_message(payload))
    return chunk


def _answer(
    text: str, reason: str | None, usage: Usage, begin: float, first: float | None
) -> Answer:
    answer = Answer(
        text=text,
        finish_reason=reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )
    if first is not None:
        answer.ttft_seconds = first - begin
        seconds = time.perf_counter() - first
        if usage.completion_tokens > 1 and seconds > 0:
            answer.decode_tokens_per_s = (usage.completion_tokens - 1) / seconds
    return answer
