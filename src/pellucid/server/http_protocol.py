"""uvicorn's HTTP parser: httptools where it is installed, with the limits that they lack."""

from __future__ import annotations

import asyncio
from typing import Any


def http_protocol(max_head_bytes: int, head_timeout: float) -> type[asyncio.Protocol]:
    """The `http` setting of uvicorn.

    A head, that is a request line and its headers, must be complete `head_timeout` seconds after
    the connection was made, or after its first byte on a connection that is used again; otherwise
    the connection is closed. h11 bounds the size of a head by a setting of uvicorn's; httptools
    would collect it without end.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return _impatient(H11Protocol, head_timeout)

    class BoundedHttpTools(HttpToolsProtocol):
        """Refuses a head that is beyond the limit and still not complete."""

        _head_bytes: int | None = None  # None between heads

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes = 0

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head_bytes is not None:
                self._head_bytes += len(data)
                if self._head_bytes > max_head_bytes:
                    self._head_bytes = None
                    self.send_400_response("Request head too large.")

    return _impatient(BoundedHttpTools, head_timeout)


def _impatient(protocol: Any, head_timeout: float) -> type[asyncio.Protocol]:
    """`protocol` that closes a connection which takes too long to say what it wants."""

    class Impatient(protocol):  # type: ignore[misc]
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_watching()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def _watch_head(self) -> None:
            # uvicorn's own timer guards a connection that rests between two requests, but stops
            # at the first byte, be it an empty line that begins no request.
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_watching()
            elif self._head_timer is None and not self.transport.is_closing():
                self._head_timer = self.loop.call_later(head_timeout, self._give_up)

        def _stop_watching(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Impatient
