"""What an answer to a chat is made of: thoughts, text and calls; how it is forced, and how read."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pellucid.errors import BadRequest
from pellucid.frontend.reasoning import reasoning_format
from pellucid.frontend.reasoning.base import BEGIN, END, Opening, opening_behind
from pellucid.frontend.reasoning.rules import bounded_thought_rules, thought_rules
from pellucid.frontend.structured import grammar_of_parts, source_of
from pellucid.frontend.tools.rules import any_text
from pellucid.grammar.errors import GrammarError
from pellucid.sampling_params import SamplingParams
from pellucid.server.params import chat_params, invalid
from pellucid.server.protocol import ChatRequest
from pellucid.server.service import Service
from pellucid.server.structured import structured_field
from pellucid.server.tools import Toolbox, check_tools

PROMPT_TAIL = 16  # tokens that hold any marker at the end of a prompt


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Tells the parts of an answer.

    Attributes:
        toolbox: the tools it may call; None if what looks like a call is text.
        opening: whether it begins with thoughts; None if there are none to be told apart.
        thinking_budget: tokens after which its thoughts are ended; it begins with thoughts then.
            None if they may go on, or if there will be none.
    """

    toolbox: Toolbox | None = None
    opening: Opening | None = None
    thinking_budget: int | None = None

    @property
    def is_plain(self) -> bool:
        return self.toolbox is None and self.opening is None

    @property
    def may_think(self) -> bool:
        """Thoughts may come."""
        return self.opening not in (None, Opening.ANSWER)


def answer_form(
    service: Service,
    toolbox: Toolbox | None,
    prompt: str | list[int],
    *,
    begun: str = "",
    thinking_budget: int | None = None,
) -> AnswerForm:
    """The form of an answer to a rendered prompt, which ends with `begun` of the answer itself."""
    name = service.config.reasoning_parser
    if name == "none":
        return AnswerForm(toolbox)
    if begun.strip():
        opening = opening_behind(begun)
    else:
        tail = prompt
        if not isinstance(tail, str):
            tail = service.llm.decode(tail[-PROMPT_TAIL:], skip_special_tokens=False)
        opening = reasoning_format(name).opening(tail)
    return AnswerForm(toolbox, opening, None if opening is Opening.ANSWER else thinking_budget)


async def answer_params(service: Service, body: ChatRequest, form: AnswerForm) -> SamplingParams:
    """Sampling parameters under which the answer keeps to its form.

    Raises:
        BadRequest: what the request wants cannot be kept, naming the field.
    """
    params = chat_params(body)
    if form.is_plain:
        return params
    if _marks_are_special(service, form):
        params = msgspec.structs.replace(params, skip_special_tokens=False)
    box = form.toolbox
    calls = box is not None and box.constrains
    thinks_first = params.structured_outputs is not None and form.may_think
    if not calls and not thinks_first and form.thinking_budget is None:
        return params
    if box is not None and calls:
        await check_tools(service, box)
    if params.structured_outputs is not None:  # so that errors of its own have its name
        await service.llm.check_structured(params.structured_outputs, structured_field(body))
    field = "tools" if calls else structured_field(body, default="thinking_budget")
    try:
        grammar = _grammar(service, params, form)
    except GrammarError as error:
        raise BadRequest(f"tools: {error}", param="tools", code="unsupported_grammar") from None
    await service.llm.check_structured(grammar, field)
    return msgspec.structs.replace(params, structured_outputs=None, grammar=grammar)


def _grammar(service: Service, params: SamplingParams, form: AnswerForm) -> str:
    rules, body = "", "@answer"
    wanted = params.structured_outputs
    answer = None if wanted is None else source_of(wanted)
    box = form.toolbox
    marker = {text: spelled(service, text) for text in (box.form.markers if box else ())}
    if box is not None and box.constrains:
        rules = box.form.calls_rules(box.tools(), parallel=box.parallel, marker=marker)
        body = "calls" if answer is None else "calls | @answer"
        if not box.forced and answer is None:
            body = "prose_or_calls"
            rules += box.form.prose_rules(marker)
    elif answer is None:
        body, rules = "any", any_text(marker.values())
    return grammar_of_parts(_thought(service, form), body, rules, answer)


def _thought(service: Service, form: AnswerForm) -> tuple[str, str]:
    """What stands before the body of an answer in a grammar, and the rules for it."""
    if not form.may_think:
        return "", ""
    begins = form.opening is Opening.MAYBE
    if form.thinking_budget is not None:
        tokenizer = service.llm.tokenizer
        end = tokenizer.token_id(END)
        if end is None:
            raise invalid("thinking_budget", f"cannot be kept: {END} is no token of this model's")
        begin = tokenizer.special_id(BEGIN)
        rules = bounded_thought_rules(end, form.thinking_budget, begin=begin, begins=begins)
        return "thought SPACE", rules
    rules = thought_rules(spelled(service, END))
    return f"({spelled(service, BEGIN)} thought SPACE)?" if begins else "thought SPACE", rules


def spelled(service: Service, marker: str) -> str:
    """A marker in a rule of a grammar: a string, or the special token that it is."""
    token = service.llm.tokenizer.special_id(marker)
    return msgspec.json.encode(marker).decode() if token is None else f"<[{token}]>"


def _marks_are_special(service: Service, form: AnswerForm) -> bool:
    marks = () if form.toolbox is None else form.toolbox.form.markers
    if form.opening is not None:
        marks = (*marks, BEGIN, END)
    return any(service.llm.tokenizer.special_id(mark) is not None for mark in marks)
