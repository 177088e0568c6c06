"""How models write down that they want a function called: one file per way, by name.

vLLM's names, so that its users find theirs. To add one: a file with a class like `hermes.Hermes`,
and a line in `_HOMES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from pellucid.frontend.tools.base import ToolFormat

_HOMES = {
    "hermes": "pellucid.frontend.tools.hermes:Hermes",  # also Qwen 2.5 and 3
    "llama3_json": "pellucid.frontend.tools.llama3_json:Llama3Json",
    "mistral": "pellucid.frontend.tools.mistral:Mistral",
    "pythonic": "pellucid.frontend.tools.pythonic:Pythonic",
}
TOOL_FORMATS = tuple(_HOMES)

# What a chat template that teaches a format contains; the first that is found decides.
_TRACES = (
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
)


def tool_format(name: str) -> ToolFormat:
    """The format of that name, one of TOOL_FORMATS."""
    module, _, attribute = _HOMES[name].partition(":")
    made: ToolFormat = getattr(import_module(module), attribute)()
    return made


def detect_tool_format(templates: Iterable[str]) -> str:
    """The format that a model's chat templates speak of; hermes where they speak of none."""
    text = "\n".join(templates)
    return next((name for trace, name in _TRACES if trace in text), "hermes")
