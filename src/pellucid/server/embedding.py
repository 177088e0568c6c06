"""Vectors of texts: what clients send and receive in OpenAI's shapes, and the way to the engine."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request

from pellucid.errors import BadRequest
from pellucid.frontend.embedding import NOTHING_SAMPLED, vector_of
from pellucid.messages import Pooling
from pellucid.server.job import Job
from pellucid.server.protocol import Int32, Prompt, RequestFields, SamplingFields
from pellucid.server.service import Service

EncodingFormat = Literal["float", "base64"]


class EmbeddingRequest(RequestFields, kw_only=True):
    """Body of POST /v1/embeddings."""

    input: Prompt
    model: str | None = None
    encoding_format: Annotated[
        EncodingFormat | None, Meta(description="base64: of little-endian float32.")
    ] = None
    dimensions: Annotated[
        Int32 | None, Meta(description="Only the model's own size of a vector.")
    ] = None
    pooling: Annotated[Pooling | None, Meta(description="--pooling by default.")] = None
    normalize: Annotated[
        bool | None, Meta(description="False: vectors keep the length they have in the model.")
    ] = None
    truncate_prompt_tokens: Int32 | None = None
    add_special_tokens: bool | None = None

    def engine_fields(self) -> SamplingFields:
        """What of it concerns every request to the engine."""
        shared = set(self.__struct_fields__) & set(SamplingFields.__struct_fields__)
        return SamplingFields(**{name: getattr(self, name) for name in shared})


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding` is a list of numbers, or base64 of them as little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/embeddings; `data` is in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


SCHEMAS: tuple[type[msgspec.Struct], ...] = (EmbeddingRequest, Embeddings)


async def open_embeddings(
    request: Request,
    service: Service,
    texts: Sequence[str | list[int]],
    fields: SamplingFields,
    *,
    field: str = "input",
    dimensions: int | None = None,
    pooling: Pooling | None = None,
) -> Job:
    """Hand `texts`, the request's `field`, to the engine. Whoever opens a job closes it.

    Raises what `Service.open` raises, and BadRequest for vectors of another size than the model's.
    """
    size = service.llm.info.hidden_size
    if dimensions not in (None, size):
        raise BadRequest(
            f"dimensions must be {size}, the size of this model's vectors: it was not trained for "
            f"shorter ones, got {dimensions}",
            param="dimensions",
            code="unsupported_value",
        )
    service.check(fields)
    return await service.open(
        request,
        fields,
        NOTHING_SAMPLED,
        texts,
        kind="embd",
        prompt_field=field,
        pooling=pooling or service.config.pooling,
    )


async def vectors(job: Job, *, normalize: bool) -> list[NDArray[np.float32]]:
    """Read `job` to its end: a vector [hidden_size] for each text. Raises what the engine did."""
    return [vector_of(answer, normalize=normalize) for answer in await job.collect()]


def num_prompt_tokens(job: Job) -> int:
    return sum(len(generation.prompt_token_ids) for generation in job.generations)


def encode(vector: NDArray[np.float32], encoding: EncodingFormat | None) -> list[float] | str:
    """A vector as JSON holds it."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
