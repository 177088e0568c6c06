"""Ollama's POST /api/embed, and the older /api/embeddings. Without a text the answer is empty."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pellucid.errors import BadRequest
from pellucid.server.embedding import num_prompt_tokens, open_embeddings, vectors
from pellucid.server.models import receive_body
from pellucid.server.ollama.answer import Stopwatch
from pellucid.server.ollama.embed import (
    OllamaEmbed,
    OllamaEmbedAnswer,
    OllamaEmbeddings,
    OllamaEmbeddingsAnswer,
)
from pellucid.server.ollama.errors import OllamaError
from pellucid.server.ollama.opening import TOO_LONG, take_kept
from pellucid.server.ollama.translate import window
from pellucid.server.openapi import describe
from pellucid.server.params import prompts_of
from pellucid.server.protocol import SamplingFields
from pellucid.server.reply import json_response, whole
from pellucid.server.service import Service

router = APIRouter(prefix="/api")


@router.post("/embed", **describe(OllamaEmbed, OllamaEmbedAnswer, error=OllamaError))
async def embed(request: Request) -> Response:
    """A vector of length 1 for each text."""
    watch, body = Stopwatch(request), await receive_body(request, OllamaEmbed)
    service = await take_kept(request, body, watch)
    size = window(service, body)
    if not body.texts:
        return json_response(OllamaEmbedAnswer(body.asked, []))
    prompts_of("input", [*body.texts], service.config.max_prompts)
    cuts = body.truncate is not False
    texts = [await _fitting(service, text, size, cuts=cuts) for text in body.texts]
    job = await open_embeddings(
        request, service, texts, SamplingFields(), dimensions=body.dimensions
    )

    async def answer() -> OllamaEmbedAnswer:
        found = await vectors(job, normalize=True)
        return OllamaEmbedAnswer(
            body.asked,
            [vector.tolist() for vector in found],
            **watch.durations(None),
            prompt_eval_count=num_prompt_tokens(job),
        )

    return await whole(request, job, answer())


@router.post("/embeddings", **describe(OllamaEmbeddings, OllamaEmbeddingsAnswer, error=OllamaError))
async def embeddings(request: Request) -> Response:
    """A vector of one text, not normalised."""
    watch, body = Stopwatch(request), await receive_body(request, OllamaEmbeddings)
    service = await take_kept(request, body, watch)
    size = window(service, body)
    if not body.prompt:
        return json_response(OllamaEmbeddingsAnswer([]))
    text = await _fitting(service, body.prompt, size, cuts=True)
    job = await open_embeddings(request, service, [text], SamplingFields(), field="prompt")

    async def answer() -> OllamaEmbeddingsAnswer:
        (vector,) = await vectors(job, normalize=False)
        return OllamaEmbeddingsAnswer(vector.tolist())

    return await whole(request, job, answer())


async def _fitting(service: Service, text: str, size: int, *, cuts: bool) -> list[int]:
    """Token ids of `text`; of one that exceeds `size`, as many as fit. Raises BadRequest."""
    ids = await service.tokenize(text, add_special_tokens=True)
    if len(ids) > size and not cuts:
        raise BadRequest(
            f"input has a text of {len(ids)} tokens; the context has {size} (options.num_ctx).",
            param="input",
            code=TOO_LONG,
        )
    return ids[:size]
