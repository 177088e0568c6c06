"""One answer to a conversation on its way, whichever API it was asked for in."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request

from pellucid.server.answer_form import AnswerForm, answer_form, answer_params
from pellucid.server.answer_parts import AnswerParts
from pellucid.server.conversation import conversation, template_messages, template_options
from pellucid.server.job import Job
from pellucid.server.protocol import ChatRequest
from pellucid.server.service import Service
from pellucid.server.tools import Toolbox, tool_messages, toolbox


class ChatJob:
    """A job, and what its answers are made of."""

    def __init__(self, service: Service, body: ChatRequest, job: Job, form: AnswerForm) -> None:
        self.service = service
        self.body = body
        self.job = job
        self.form = form
        self._parts: dict[int, AnswerParts] = {}

    def parts(self, index: int) -> AnswerParts:
        """What reads the answer of choice `index`."""
        parts = self._parts.get(index)
        if parts is None:
            shown = self.body.include_reasoning is not False
            decode = partial(self.service.llm.decode, skip_special_tokens=False)
            parts = AnswerParts(self.form, decode, show_reasoning=shown)
            self._parts[index] = parts
        return parts


async def open_chat(
    request: Request,
    service: Service,
    body: ChatRequest,
    *,
    kind: str = "chatcmpl",
    fits_context: bool = False,
) -> ChatJob:
    """Hand a conversation to the engine; `kind` begins the id that the client sees.

    `body` has passed `Service.check`. With `fits_context` its `max_tokens` may exceed what the
    context has room for, and is lowered to that. Whoever opens a job closes it.

    Raises:
        BadRequest: a field is wrong, contradicts another, or asks for what cannot be kept.
        Overloaded, RateLimited, EngineDead: nothing is left in the engine then.
    """
    tools = toolbox(service, body)
    prompt = await chat_prompt(service, body, tools)
    if fits_context and body.max_tokens is not None and isinstance(prompt, list):
        room = max(service.max_model_len - len(prompt), 1)
        body = msgspec.structs.replace(body, max_tokens=min(body.max_tokens, room))
    form = answer_form(service, tools, prompt)
    job = await service.open(
        request,
        body,
        await answer_params(service, body, form),
        [prompt],
        kind=kind,
        prompt_field="messages" if body.prompt is None else "prompt",
    )
    return ChatJob(service, body, job, form)


async def prompt_ids(service: Service, body: ChatRequest) -> list[int]:
    """The tokens that `open_chat` would begin with. Raises BadRequest."""
    prompt = await chat_prompt(service, body, toolbox(service, body))
    if isinstance(prompt, str):
        return await service.tokenize(prompt, add_special_tokens=True)
    return prompt


async def chat_prompt(
    service: Service, body: ChatRequest, tools: Toolbox | None
) -> str | list[int]:
    """The conversation in the model's chat format. Raises BadRequest."""
    messages = template_messages(conversation(body))
    messages, told = tool_messages(service, messages, body.tools if tools else None)
    options = template_options(body) | told
    if body.add_special_tokens:  # besides those that the template writes
        return service.llm.text.render_chat(messages, **options)
    return await service.llm.chat_prompt(messages, **options)
