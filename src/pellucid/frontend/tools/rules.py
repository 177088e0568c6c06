"""Rules of a grammar that several ways of writing calls share; see `grammar/source.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pellucid.frontend.tools.base import Tool, compact_json
from pellucid.grammar.source import json_rule, literal


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


def prose_until(marker: str, behind: str) -> str:
    """`prose_or_calls`: any text; once it holds `marker`, a string or token, `behind` follows."""
    # A marker of text has to end the prose before it; a special token is no text.
    head = "head" if marker.startswith("<[") else "head[lazy]"
    return f"prose_or_calls: PROSE | head {behind}\n{head}: PROSE {marker}\nPROSE: /(.|\\n)*/\n"


def any_text(markers: Iterable[str]) -> str:
    """`any`: any text, with those of `markers` in it that are special tokens."""
    special = [marker for marker in markers if marker.startswith("<[")]
    more = f"(({' | '.join(special)}) PROSE)*" if special else ""
    return f"any: PROSE {more}\nPROSE: /(.|\\n)*/\n"


def prose_unless(opening: str, calls: str) -> str:
    """`prose_or_calls`: calls, or any text that does not begin with the character `opening`.

    White space before it makes no difference: parsers of calls pass over it.
    """
    return f"prose_or_calls: {calls} | PROSE?\nPROSE: /\\s*[^\\s\\{opening}](.|\\n)*/\n"
