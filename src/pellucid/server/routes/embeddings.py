"""POST /v1/embeddings: a vector for each text."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.server.embedding import (
    Embedding,
    EmbeddingRequest,
    Embeddings,
    EmbeddingUsage,
    encode,
    num_prompt_tokens,
    open_embeddings,
    vectors,
)
from pellucid.server.models import receive
from pellucid.server.openapi import describe
from pellucid.server.params import invalid, prompts_of
from pellucid.server.reply import whole

router = APIRouter()


@router.post("/v1/embeddings", **describe(EmbeddingRequest, Embeddings))
async def embeddings(request: Request) -> Response:
    """The model's final hidden states of one or more texts, pooled into a vector for each."""
    service, body = await receive(request, EmbeddingRequest)
    texts = prompts_of("input", body.input, service.config.max_prompts)
    if "" in texts:  # a BOS would make a token of it
        field = "input" if len(texts) == 1 else f"input[{texts.index('')}]"
        raise invalid(field, "must not be an empty text")
    job = await open_embeddings(
        request,
        service,
        texts,
        body.engine_fields(),
        dimensions=body.dimensions,
        pooling=body.pooling,
    )

    async def answer() -> Embeddings:
        found = await vectors(job, normalize=body.normalize is not False)
        data = [
            Embedding(index=index, embedding=encode(vector, body.encoding_format))
            for index, vector in enumerate(found)
        ]
        count = num_prompt_tokens(job)
        name = service.model_name
        return Embeddings(data=data, model=name, usage=EmbeddingUsage(count, count))

    return await whole(request, job, answer())
