"""The text half of a model: its tokenizer, its chat format and its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pellucid.config import ModelSettings
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.tokenizer import Tokenizer, load_tokenizer
from pellucid.load.files import ModelFiles


@dataclass(frozen=True, slots=True)
class ModelText:
    """What turns text into token ids and back; `name` is the model's own."""

    name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The conversation as text in the model's chat format; see `ChatTemplate.render`."""
        return self.chat_template.render(messages, **options)


def load_text(files: ModelFiles, settings: ModelSettings) -> ModelText:
    """Read the tokenizer and the chat template; `settings.chat_template` replaces the model's.

    Raises:
        ModelError: the tokenizer or the template cannot be read.
        ConfigError: the file that `settings.chat_template` names cannot be read.
    """
    tokenizer = load_tokenizer(files)
    template = ChatTemplate.of(tokenizer, settings.chat_template)
    return ModelText(files.name, tokenizer, template)
