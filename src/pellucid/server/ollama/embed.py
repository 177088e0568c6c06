"""Vectors in Ollama's shapes (https://github.com/ollama/ollama/blob/main/docs/api.md)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pellucid.server.protocol import Body, Int32

Options = Annotated[
    dict[str, Any] | None,
    Meta(description="Without effect; the context is the server's, not num_ctx."),
]
KeepAlive = Annotated[
    float | str | None, Meta(description="Without effect: the model stays loaded.")
]


class _Named(Body, kw_only=True):
    """`asked` is what answers repeat: `latest` is the only tag that a model has here."""

    asked: Annotated[str, Meta(min_length=1)] = msgspec.field(name="model")
    options: Options = None
    keep_alive: KeepAlive = None

    @property
    def model(self) -> str:
        """The name under which it is served."""
        return self.asked.removesuffix(":latest")


class OllamaEmbed(_Named, kw_only=True):
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


class OllamaEmbeddings(_Named, kw_only=True):
    """Body of POST /api/embeddings, which /api/embed came after."""

    prompt: str | None = None


class OllamaEmbeddingsAnswer(msgspec.Struct):
    """A vector as it is in the model, of any length."""

    embedding: list[float]
