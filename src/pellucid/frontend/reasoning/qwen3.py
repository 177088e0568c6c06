"""Qwen 3 may think, as its template is told: `chat_template_kwargs: {"enable_thinking": false}`.

Then the template closes an empty thought itself. Models that always think have the opening marker
in their template.
"""

from __future__ import annotations

from pellucid.frontend.reasoning.base import BEGIN, END, Opening


class Qwen3:
    """Implements `ReasoningFormat`."""

    def opening(self, prompt: str) -> Opening:
        end = prompt.rstrip()
        if end.endswith(END):
            return Opening.ANSWER
        return Opening.THINKING if end.endswith(BEGIN) else Opening.MAYBE
