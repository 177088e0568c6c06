"""DeepSeek R1 and its distillations think before every answer.

The opening marker is often in the prompt, and sometimes nowhere: all up to `</think>` is thought.
"""

from __future__ import annotations

from pellucid.frontend.reasoning.base import END, Opening


class DeepSeekR1:
    """Implements `ReasoningFormat`."""

    def opening(self, prompt: str) -> Opening:
        return Opening.ANSWER if prompt.rstrip().endswith(END) else Opening.THINKING
