"""The text half of a model: its tokenizer, its chat format and its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.config import ModelSettings
from pellucid.errors import BadRequest, ConfigError
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.tokenizer import Tokenizer, load_tokenizer
from pellucid.load.files import ModelFiles


@dataclass(frozen=True, slots=True)
class ModelText:
    """What turns text into token ids and back; `name` is the model's own."""

    name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None = None

    def render_chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        """The conversation as the text that the model was trained on.

        Raises:
            BadRequest: there is no chat template, or it refuses the conversation.
        """
        if self.chat_template is None:
            raise BadRequest(
                f"{self.name} has no chat template: use a text prompt, or start with one",
                param="messages",
                code="no_chat_template",
            )
        return self.chat_template.render(messages, **options)


def load_text(files: ModelFiles, settings: ModelSettings) -> ModelText:
    """Read the tokenizer and the chat template; `settings.chat_template` replaces the model's.

    Raises:
        ModelError: the tokenizer cannot be read.
        ConfigError: the file that `settings.chat_template` names cannot be read.
    """
    tokenizer = load_tokenizer(files)
    source = tokenizer.chat_template
    if settings.chat_template is not None:
        try:
            source = Path(settings.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"chat_template: cannot read {settings.chat_template}: {error}",
                param="chat_template",
            ) from None
    template = ChatTemplate(source, tokenizer) if source else None
    return ModelText(files.name, tokenizer, template)
