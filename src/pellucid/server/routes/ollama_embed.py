"""Ollama's POST /api/embed, and the older /api/embeddings. Without a text the answer is empty."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from pellucid.server.embedding import num_prompt_tokens, open_embeddings, vectors
from pellucid.server.models import receive
from pellucid.server.ollama.embed import (
    OllamaEmbed,
    OllamaEmbedAnswer,
    OllamaEmbeddings,
    OllamaEmbeddingsAnswer,
)
from pellucid.server.ollama.errors import OllamaError
from pellucid.server.openapi import describe
from pellucid.server.params import prompts_of
from pellucid.server.protocol import SamplingFields
from pellucid.server.reply import json_response, whole
from pellucid.server.service import Service

router = APIRouter(prefix="/api")


@router.post("/embed", **describe(OllamaEmbed, OllamaEmbedAnswer, error=OllamaError))
async def embed(request: Request) -> Response:
    """A vector of length 1 for each text."""
    begin = time.monotonic_ns()
    service, body = await receive(request, OllamaEmbed)
    if not body.texts:
        return json_response(OllamaEmbedAnswer(body.asked, []))
    texts = prompts_of("input", [*body.texts], service.config.max_prompts)
    if body.truncate is not False:
        texts = [await _beginning(service, text) for text in body.texts]
    job = await open_embeddings(
        request, service, texts, SamplingFields(), dimensions=body.dimensions
    )

    async def answer() -> OllamaEmbedAnswer:
        found = await vectors(job, normalize=True)
        return OllamaEmbedAnswer(
            body.asked,
            [vector.tolist() for vector in found],
            total_duration=time.monotonic_ns() - begin,
            prompt_eval_count=num_prompt_tokens(job),
        )

    return await whole(request, job, answer())


@router.post("/embeddings", **describe(OllamaEmbeddings, OllamaEmbeddingsAnswer, error=OllamaError))
async def embeddings(request: Request) -> Response:
    """A vector of one text, not normalised."""
    service, body = await receive(request, OllamaEmbeddings)
    if not body.prompt:
        return json_response(OllamaEmbeddingsAnswer([]))
    text = await _beginning(service, body.prompt)
    job = await open_embeddings(request, service, [text], SamplingFields(), field="prompt")

    async def answer() -> OllamaEmbeddingsAnswer:
        (vector,) = await vectors(job, normalize=False)
        return OllamaEmbeddingsAnswer(vector.tolist())

    return await whole(request, job, answer())


async def _beginning(service: Service, text: str) -> list[int]:
    """As much of `text` as fits into the context."""
    ids = await service.tokenize(text, add_special_tokens=True)
    return ids[: service.max_model_len]
