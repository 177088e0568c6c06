"""Renders the messages of a chat into the prompt that a model was trained on."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError

from pellucid.errors import BadRequest, ConfigError, ModelError
from pellucid.frontend.chat_messages import plain_messages
from pellucid.frontend.template_sandbox import TemplateLimitError, TemplateSandbox, metered
from pellucid.frontend.tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 1 << 18


class ChatTemplate:
    """A model's chat template, compiled once; `render` may be called from any thread.

    Args:
        source: Jinja source, or sources by name, of which "default" and "tool_use" are used; None
            for a model that has no template, which can complete texts but not chat.
        special_tokens: what the template may name, such as "bos_token".

    Raises:
        ModelError: the template is too long or is not valid Jinja.
    """

    def __init__(
        self, source: str | Mapping[str, str] | None, special_tokens: Mapping[str, str]
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source or {})
        self._special_tokens = dict(special_tokens)
        self._sandbox = TemplateSandbox()
        self._sandbox.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        self.sources = sources
        self._knows_developer = any("developer" in text for text in sources.values())
        self._templates = {
            name: self._compile(sources[name])
            for name in ("default", "tool_use")
            if name in sources
        }

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the template looks at, besides what it sets itself."""
        parsed = (self._sandbox.parse(self.sources[name]) for name in self._templates)
        return frozenset().union(*map(meta.find_undeclared_variables, parsed))

    @property
    def knows_tools(self) -> bool:
        """Whether the template does something with `tools`."""
        return "tool_use" in self._templates or "tools" in self.variables

    @property
    def can_think(self) -> bool:
        """Whether the template has `enable_thinking`, which turns thoughts on and off."""
        return "enable_thinking" in self.variables

    @classmethod
    def of(cls, tokenizer: Tokenizer, path: str | None = None) -> ChatTemplate:
        """The model's own template, or the one in the file `path` in its place.

        Raises:
            ConfigError: the file cannot be read.
            ModelError: as the class does.
        """
        if path is None:
            return cls(tokenizer.chat_templates, tokenizer.special_tokens)
        try:
            source = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: {error}", param="chat_template") from None
        return cls(source, tokenizer.special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt. It holds its own BOS: encode it with `add_special_tokens=False`.

        Args:
            messages: objects with `role` and `content`, as OpenAI's API has them.
            add_generation_prompt: end with the start of the assistant's turn.
            continue_final_message: end with the last message's text, its turn left open.
            tools: function schemas, for templates that know what to do with them.
            kwargs: further variables of the template, such as `enable_thinking`.

        Raises:
            BadRequest: the messages are malformed, or the template refuses or cannot render them;
                `param` is "messages" or the argument at fault.
            ModelError: the template attempts something that the sandbox forbids.
        """
        plain = plain_messages(messages)
        if not self._knows_developer:  # the newer name of the system role
            for message in plain:
                if message["role"] == "developer":
                    message["role"] = "system"
        _check_tools(tools)
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": plain,
            "tools": [dict(tool) for tool in tools] if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        if not continue_final_message:
            return self._render(variables)
        if add_generation_prompt:
            raise BadRequest(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        return self._render_open(variables)

    def _render_open(self, variables: dict[str, Any]) -> str:
        """Render with a mark behind the last message's text, and cut there."""
        last = variables["messages"][-1]
        if last["content"] is None:
            raise BadRequest(
                "continue_final_message: the last message has no content",
                param="continue_final_message",
            )
        mark = secrets.token_hex(16)
        last["content"] += mark
        prompt, found, _ = self._render(variables).rpartition(mark)
        if not found:
            raise BadRequest(
                "continue_final_message: the chat template leaves out the last message's text",
                param="continue_final_message",
            )
        return prompt.replace(mark, "")

    def _compile(self, source: str) -> jinja2.Template:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters")
        try:
            with metered():
                return self._sandbox.template(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the chat template: {error.message}, line {error.lineno}") from None
        except (TemplateLimitError, RecursionError, SyntaxError, ValueError, TypeError) as error:
            # Jinja turns a template into Python source, which has limits of its own.
            raise ModelError(f"the chat template cannot be compiled: {error}") from None

    def _render(self, variables: dict[str, Any]) -> str:
        template = self._templates.get("tool_use") if variables["tools"] else None
        template = template or self._templates.get("default")
        if template is None:
            raise BadRequest(
                "this model has no chat template: send a prompt to complete instead, or start "
                "pellucid with --chat-template",
                param="messages",
            )
        try:
            with metered():
                return template.render(variables)
        except BadRequest:
            raise
        except SecurityError as error:
            raise ModelError(f"the chat template was stopped: {error}") from None
        except (TemplateLimitError, RecursionError) as error:
            raise BadRequest(f"the chat template was stopped: {error}", param="messages") from None
        except Exception as error:  # a template can fail like any program
            raise BadRequest(
                f"the chat template cannot render these messages: {error}", param="messages"
            ) from None


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRequest("tools must be a list of objects", param="tools")


def _raise(message: object) -> NoReturn:
    raise BadRequest(f"the chat template refuses these messages: {message}", param="messages")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
