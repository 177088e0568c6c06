"""What clients of Ollama's API are told when a request fails: `{"error": "..."}`."""

from __future__ import annotations

import msgspec

from pellucid.server.errors import ERROR_SHAPES, ErrorDetail


class OllamaError(msgspec.Struct):
    """Body of every answer under /api with a status of 400 or more."""

    error: str


def ollama_shape(error: ErrorDetail, status: int, request_id: str) -> msgspec.Struct:
    return OllamaError(error.message)


ERROR_SHAPES["/api"] = ollama_shape
