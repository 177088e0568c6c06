"""Vectors in Ollama's shapes (https://github.com/ollama/ollama/blob/main/docs/api.md)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from pellucid.server.ollama.protocol import Computed
from pellucid.server.protocol import Int32


class OllamaEmbed(Computed):
    """Body of POST /api/embed."""

    input: str | list[str] | None = None
    truncate: Annotated[
        bool | None,
        Meta(description="True by default: a text's end that does not fit is left out."),
    ] = None
    dimensions: Annotated[
        Int32 | None, Meta(description="Only the model's own size of a vector.")
    ] = None

    @property
    def texts(self) -> list[str]:
        if isinstance(self.input, str):
            return [self.input] if self.input else []
        return self.input or []


class OllamaEmbedAnswer(msgspec.Struct):
    """Vectors of length 1; durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class OllamaEmbeddings(Computed):
    """Body of POST /api/embeddings, which /api/embed came after."""

    prompt: str | None = None


class OllamaEmbeddingsAnswer(msgspec.Struct):
    """A vector as it is in the model, of any length."""

    embedding: list[float]


SCHEMAS: tuple[type[msgspec.Struct], ...] = (
    OllamaEmbed,
    OllamaEmbedAnswer,
    OllamaEmbeddings,
    OllamaEmbeddingsAnswer,
)
