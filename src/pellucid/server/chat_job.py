"""One answer to a conversation on its way, whichever API it was asked for in."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from pellucid.frontend.reasoning.base import Opening
from pellucid.server.answer_form import AnswerForm, answer_form, answer_params
from pellucid.server.answer_parts import AnswerParts
from pellucid.server.conversation import (
    begun_answer,
    conversation,
    template_messages,
    template_options,
)
from pellucid.server.job import Job
from pellucid.server.own_names import compiled, own_names
from pellucid.server.params import invalid
from pellucid.server.protocol import ChatRequest
from pellucid.server.service import Service
from pellucid.server.tools import Toolbox, tool_messages, toolbox

_NEWER = compiled({r"\bmax_tokens\b": "max_completion_tokens"})


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
    prompt: list[int] | None = None,
    thinking_budget: int | None = None,
) -> ChatJob:
    """Hand a conversation to the engine; `kind` begins the id that the client sees.

    `body` has passed `Service.check`; `prompt` is what `prompt_ids` made of it, if it was asked
    before. With a `thinking_budget` the answer begins with thoughts of at most so many tokens, if
    the model thinks. Whoever opens a job closes it.

    Raises:
        BadRequest: a field is wrong, contradicts another, or asks for what cannot be kept.
        Overloaded, RateLimited, EngineDead: nothing is left in the engine then.
    """
    tools = toolbox(service, body)
    ids = await _prompt(service, body, tools) if prompt is None else prompt
    form = answer_form(
        service, tools, ids, begun=begun_answer(body), thinking_budget=thinking_budget
    )
    if body.reasoning_effort == "none" and form.opening is Opening.THINKING:
        raise invalid("reasoning_effort", "must not be none: this model always thinks")
    is_newer = body.max_completion_tokens is not None and body.max_tokens is None
    with own_names(_NEWER if is_newer else ()):
        job = await service.open(
            request,
            body,
            await answer_params(service, body, form),
            [ids],
            kind=kind,
            prompt_field="messages" if body.prompt is None else "prompt",
        )
    return ChatJob(service, body, job, form)


async def prompt_ids(service: Service, body: ChatRequest) -> list[int]:
    """The conversation in the model's chat format, as `open_chat` begins. Raises BadRequest."""
    prompt = await _prompt(service, body, toolbox(service, body))
    if isinstance(prompt, str):
        return await service.tokenize(prompt, add_special_tokens=True)
    return prompt


async def _prompt(service: Service, body: ChatRequest, tools: Toolbox | None) -> str | list[int]:
    messages = template_messages(conversation(body))
    messages, told = tool_messages(service, messages, body.tools if tools else None)
    options = template_options(service, body) | told
    if body.add_special_tokens:  # besides those that the template writes
        return service.llm.text.render_chat(messages, **options)
    return await service.llm.chat_prompt(messages, **options)
