"""From a request of Ollama's to an answer on its way: the prompt made to fit, and handed over."""

from __future__ import annotations

from starlette.requests import Request

from pellucid.errors import BadRequest
from pellucid.server import protocol
from pellucid.server.answer_form import AnswerForm
from pellucid.server.chat_job import ChatJob, open_chat, prompt_ids
from pellucid.server.models import models_of, take_model
from pellucid.server.ollama.answer import Stopwatch
from pellucid.server.ollama.protocol import Computed, OllamaChat, OllamaGenerate
from pellucid.server.ollama.translate import (
    CHAT_NAMES,
    GENERATE_NAMES,
    answer_limit,
    chat_request,
    generate_request,
    keep_alive_seconds,
    raw_request,
    window,
)
from pellucid.server.own_names import own_names
from pellucid.server.params import completion_params, invalid
from pellucid.server.service import Service

TOO_LONG = "context_length_exceeded"


async def take_kept(request: Request, body: Computed, watch: Stopwatch) -> Service:
    """The model, which stays for as long as `body` says. Raises what `take_model` does."""
    seconds = keep_alive_seconds(body.keep_alive)
    service = await take_model(request, body)
    if seconds is not None:
        models_of(request).set_keep_alive(body.model, seconds)
    watch.loaded()
    return service


async def open_conversation(request: Request, service: Service, body: OllamaChat) -> ChatJob:
    """Answer /api/chat. Raises what `open_chat` raises."""
    with own_names(CHAT_NAMES):
        chat = chat_request(service, body)
        service.check(chat)
        size = window(service, body)
        prompt = await _fitting(service, chat, size, truncate=body.truncate is not False)
        chat.max_tokens = answer_limit(body, size - len(prompt))
        return await open_chat(request, service, chat, kind="chat", prompt=prompt)


async def open_generation(request: Request, service: Service, body: OllamaGenerate) -> ChatJob:
    """Answer /api/generate. Raises what `open_chat` raises."""
    if body.truncate:  # what is left would no more have the form of the chat template
        raise invalid("truncate", "must not be true: a prompt is taken whole or not at all")
    with own_names(GENERATE_NAMES):
        size = window(service, body)
        if body.raw:
            return await _open_raw(request, service, body, size)
        chat = generate_request(service, body)
        service.check(chat)
        turn = await _rendered(service, chat)
        if turn is None:
            raise _too_long("prompt", None, size)
        prompt = _following(service, body.context or [], turn)
        _check_room("prompt", prompt, size)
        chat.max_tokens = answer_limit(body, size - len(prompt))
        return await open_chat(request, service, chat, kind="gen", prompt=prompt)


async def _open_raw(request: Request, service: Service, body: OllamaGenerate, size: int) -> ChatJob:
    raw = raw_request(service, body)
    service.check(raw)
    prompt = await service.tokenize(body.prompt or "", add_special_tokens=True)
    _check_room("prompt", prompt, size)
    raw.max_tokens = answer_limit(body, size - len(prompt))
    job = await service.open(request, raw, completion_params(raw), [prompt], kind="gen")
    return ChatJob(service, protocol.ChatRequest(), job, AnswerForm())


def _following(service: Service, context: list[int], turn: list[int]) -> list[int]:
    """The tokens of an earlier answer, and a turn that the template began as a conversation."""
    size = service.llm.info.vocab_size
    for token in context:
        if token >= size:
            raise invalid("context", f"has {token}, outside the vocabulary (0 to {size - 1})")
    if context and turn[:1] == [service.llm.tokenizer.bos_token_id]:
        turn = turn[1:]
    return context + turn


async def _fitting(
    service: Service, chat: protocol.ChatRequest, size: int, *, truncate: bool
) -> list[int]:
    """The prompt; one that leaves no room for an answer loses its oldest turns if it may.

    A turn goes from a message of the user to the next: what is left has the form of a conversation.
    System messages stay. As few turns go as leave a quarter of the context free, or all but one.
    """
    prompt = await _rendered(service, chat)
    if prompt is not None and len(prompt) < size:
        return prompt
    messages = chat.messages or []
    starts = [i for i, message in enumerate(messages) if message.role == "user"][1:]
    if not truncate or not starts:
        raise _too_long("messages", prompt, size)

    async def without(start: int) -> list[int] | None:
        before = [message for message in messages[:start] if message.role == "system"]
        chat.messages = before + messages[start:]
        return await _rendered(service, chat)

    low, high = 0, len(starts) - 1  # the place of the first start that will do
    while low < high:
        middle = (low + high) // 2
        shorter = await without(starts[middle])
        if shorter is not None and len(shorter) <= size - size // 4:
            high = middle
        else:
            low = middle + 1
    prompt = await without(starts[low])
    if prompt is None or len(prompt) >= size:
        raise _too_long("messages", prompt, size)
    return prompt


async def _rendered(service: Service, chat: protocol.ChatRequest) -> list[int] | None:
    """Token ids in the model's chat format; None for a text that no split would make fit."""
    try:
        return await prompt_ids(service, chat)
    except BadRequest as error:
        if error.code == TOO_LONG:
            return None
        raise


def _check_room(field: str, prompt: list[int], size: int) -> None:
    if len(prompt) >= size:
        raise _too_long(field, prompt, size)


def _too_long(field: str, prompt: list[int] | None, size: int) -> BadRequest:
    length = "more tokens" if prompt is None else f"{len(prompt)} tokens"
    return BadRequest(
        f"{field} has {length}; the context has {size} (options.num_ctx), "
        "and an answer needs at least one of them.",
        param=field,
        code=TOO_LONG,
    )
