"""Rules of a grammar that several ways of writing calls share; see `grammar/source.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pellucid.frontend.tools.base import Tool, compact_json
from pellucid.grammar.source import ANYTHING, json_rule, literal, regex_terminal, text_unlike


def json_calls(tools: Sequence[Tool], arguments_key: str) -> str:
    """`call`: `{"name": "f", KEY: {...}}` for one of the tools."""
    lines = ["call: " + alternatives("call_", len(tools))]
    for i, tool in enumerate(tools):
        head = f'{{"name": {compact_json(tool.name)}, "{arguments_key}": '
        lines.append(f'call_{i}: {literal(head)} arguments_{i} "}}"')
        lines.append(f"arguments_{i}: {json_rule(dict(tool.parameters))}")
    return "\n".join(lines) + "\n"


def alternatives(prefix: str, count: int) -> str:
    return " | ".join(f"{prefix}{i}" for i in range(count))


def prose_until(text: str, marker: str, behind: str) -> str:
    """`prose_or_calls`: any text; once it holds `marker`, `behind` follows.

    Args:
        text: of the marker; parsers of calls find it however it came about.
        marker: how a rule spells it: that string, or a special token.
    """
    if marker.startswith("<["):  # which is the one way to write it
        head, prose = "head", text_unlike(ANYTHING + re.escape(text) + ANYTHING)
    else:  # it has to end the prose before it
        head, prose = "head[lazy]", regex_terminal(ANYTHING)
    return f"prose_or_calls: PROSE | head {behind}\n{head}: PROSE {marker}\nPROSE: {prose}\n"


def prose_unless(openings: Sequence[str], calls: str) -> str:
    """`prose_or_calls`: calls, or any text that begins with none of `openings`.

    White space before it makes no difference: parsers of calls pass over it.
    """
    first = "|".join(map(re.escape, openings))
    prose = text_unlike(f"\\s*({first}){ANYTHING}")
    return f"prose_or_calls: {calls} | PROSE\nPROSE: {prose}\n"


def any_text(markers: Iterable[str]) -> str:
    """`any`: any text, with those of `markers` in it that are special tokens."""
    special = [marker for marker in markers if marker.startswith("<[")]
    more = f"(({' | '.join(special)}) PROSE)*" if special else ""
    return f"any: PROSE {more}\nPROSE: {regex_terminal(ANYTHING)}\n"
