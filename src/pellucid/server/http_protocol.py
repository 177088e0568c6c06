"""uvicorn's HTTP parser: httptools where it is installed, with the limit that it lacks."""

from __future__ import annotations

import asyncio


def http_protocol(max_head_bytes: int) -> type[asyncio.Protocol] | str:
    """The `http` setting of uvicorn.

    h11 bounds request line and headers by a setting of uvicorn's; httptools would collect them
    without end.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

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

    return BoundedHttpTools
