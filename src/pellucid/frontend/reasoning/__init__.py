"""How models mark what they think before they answer: one file per way, by vLLM's names."""

from __future__ import annotations

from importlib import import_module

from pellucid.frontend.reasoning.base import ReasoningFormat

_HOMES = {
    "deepseek_r1": "pellucid.frontend.reasoning.deepseek_r1:DeepSeekR1",
    "qwen3": "pellucid.frontend.reasoning.qwen3:Qwen3",
}
REASONING_FORMATS = tuple(_HOMES)


def reasoning_format(name: str) -> ReasoningFormat:
    """The format of that name, one of REASONING_FORMATS."""
    module, _, attribute = _HOMES[name].partition(":")
    made: ReasoningFormat = getattr(import_module(module), attribute)()
    return made
