"""Rules of a grammar that thoughts follow; see `grammar/source.py`."""

from __future__ import annotations

from pellucid.frontend.reasoning.base import BEGIN, END
from pellucid.grammar.source import ANYTHING, regex_terminal, text_unlike

_SPACE = "SPACE: /\\s*/\n"
_WITH_END = ANYTHING + END + ANYTHING


def thought_rules(end: str) -> str:
    """`thought`: any text up to `end`, a string or token, and with it; and `SPACE` to follow it."""
    if end.startswith("<["):  # which is the one way to write it
        return f"thought: THOUGHT {end}\nTHOUGHT: {text_unlike(_WITH_END)}\n{_SPACE}"
    return f"thought[lazy]: THOUGHT {end}\nTHOUGHT: {regex_terminal(ANYTHING)}\n{_SPACE}"


def bounded_thought_rules(
    end: int, budget: int, *, begin: int | None = None, begins: bool = False
) -> str:
    """The same for thoughts that have to end after `budget` tokens, by the token `end`.

    That token alone ends them, spelled out it is refused: whether a limit ends a text or the text
    goes on to spell its marker must not be open in the middle of a token.

    Args:
        begins: the marker BEGIN comes first. It counts if it is text.
        begin: the special token for that marker; None if it is text.
    """
    first = f"<[{begin}]> " if begins and begin is not None else ""
    opening = BEGIN if begins and begin is None else ""
    return (
        f"thought: {first}within <[{end}]>\n"
        f"within[max_tokens={budget}]: THOUGHT\n"
        f"THOUGHT: {text_unlike(_WITH_END, like=opening + ANYTHING)}\n"
        f"{_SPACE}"
    )
