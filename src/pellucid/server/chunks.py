"""The chunks of a stream: what they share, and when they carry usage."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from pellucid.frontend.outputs import Delta
from pellucid.server.job import Job, Tally
from pellucid.server.protocol import OpenAIFields, StreamOptions
from pellucid.server.responses import (
    ChatChunk,
    ChatChunkChoice,
    CompletionChoice,
    TextCompletion,
    Usage,
)
from pellucid.server.service import Service
from pellucid.server.sse import event


class Chunks:
    """Makes the events of one stream, all with the same id."""

    def __init__(
        self,
        chunk_type: type[ChatChunk] | type[TextCompletion],
        service: Service,
        body: OpenAIFields,
        job: Job,
    ) -> None:
        options = body.stream_options or StreamOptions()
        self._type = chunk_type
        self._job = job
        self._model = service.model_name
        self._fingerprint = service.fingerprint
        self._tally = Tally(job)
        self._include_usage = bool(options.include_usage)
        self._continuous = self._include_usage and bool(options.continuous_usage_stats)

    def count(self, delta: Delta, reasoning_tokens: int | None = None) -> None:
        self._tally.add(delta, reasoning_tokens)

    def event(self, choice: ChatChunkChoice | CompletionChoice, **fields: Any) -> bytes:
        """A chunk of one choice; `fields` are the chunk's own."""
        usage: Usage | UnsetType | None = UNSET
        if self._include_usage:
            usage = self._tally.usage() if self._continuous else None
        return self._event([choice], usage, **fields)

    def usage(self) -> bytes:
        """The event after the last choice; empty if nobody asked for usage."""
        return self._event([], self._tally.usage()) if self._include_usage else b""

    def _event(self, choices: list[Any], usage: Usage | UnsetType | None, **fields: Any) -> bytes:
        return event(
            self._type(
                id=self._job.id,
                created=self._job.created,
                model=self._model,
                system_fingerprint=self._fingerprint,
                choices=choices,
                usage=usage,
                **fields,
            )
        )
