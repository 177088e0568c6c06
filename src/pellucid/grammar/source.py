"""Every kind of structured output as one text: a grammar in llguidance's dialect of Lark.

Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pellucid.grammar.errors import GrammarError
from pellucid.grammar.schema import check_schema

MAX_CHARS = 1 << 17
ANYTHING = "(.|\n)*"  # a regex: any text
# Text that a grammar forces is still sampled token by token: choosing its tokens at once would take
# the tokenizer, which the engine does not have. The last such option counts.
_NO_FORCING = '%llguidance {"no_forcing": true}'
# A space, or a line break with what indents the next line. Small models would fill an answer with
# the unlimited white space that JSON allows.
_WHITESPACE = r"( |\n[ \t]{0,32})"


def from_json_schema(schema: Any) -> str:
    """JSON text that is valid under `schema`: decoded JSON, or its text.

    Raises GrammarError, as all functions here.
    """
    return _bounded(f"start: {json_rule(schema)}")


def from_json_object() -> str:
    """Any JSON object."""
    return from_json_schema({"type": "object"})


def from_regex(regex: str) -> str:
    """A text that `regex` matches as a whole (Rust's syntax, without look-around)."""
    return _bounded(f"start: {regex_terminal(regex)}")


def from_choice(choices: Sequence[str]) -> str:
    """One of the texts."""
    if not choices:
        raise GrammarError("there must be at least one choice")
    return _bounded("start: " + " | ".join(map(literal, choices)))


def from_grammar(grammar: str) -> str:
    """A grammar written in llguidance's Lark, or in llama.cpp's GBNF (`root ::= ...`)."""
    if len(grammar) > MAX_CHARS:
        raise _too_long(grammar)
    if "::=" in grammar:
        from pellucid.grammar.compiler import lark_of_gbnf

        grammar = lark_of_gbnf(grammar)
    return _bounded(grammar)


def with_preamble(rules: str, answer: str) -> str:
    """A grammar whose rules, `start` among them, refer to another grammar as `@answer`."""
    grammars = [
        {"lark_grammar": _bounded(rules)},
        {"name": "answer", "lark_grammar": _bounded(answer)},
    ]
    return json.dumps({"grammars": grammars})


# ---- parts of a grammar


def json_rule(schema: Any) -> str:
    """What stands for the JSON of `schema` on the right side of a rule."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is not valid JSON: {error}") from None
    check_schema(schema)
    if schema is False:
        raise GrammarError("the schema allows nothing")
    options = {"whitespace_pattern": _WHITESPACE}
    fields = {} if schema is True else schema
    try:
        return "%json " + json.dumps({"x-guidance": options, **fields}, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None


def regex_terminal(regex: str) -> str:
    """`regex` between slashes, with the slashes and line breaks in it escaped."""
    escaped, after_backslash = [], False
    for char in regex:
        escaped.append({"/": "/" if after_backslash else r"\/", "\n": r"\n"}.get(char, char))
        after_backslash = char == "\\" and not after_backslash
    if after_backslash:
        raise GrammarError("the regex ends with a backslash")
    return f"/{''.join(escaped)}/"


def text_unlike(regex: str, like: str = ANYTHING) -> str:
    """A terminal: text that `like` matches as a whole, and `regex` does not."""
    return f"{regex_terminal(like)} & ~{regex_terminal(regex)}"


def literal(text: str) -> str:
    """`text` as a string of the grammar, which has JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def _bounded(source: str) -> str:
    if len(source) > MAX_CHARS:
        raise _too_long(source)
    return f"{source}\n{_NO_FORCING}\n"


def _too_long(source: str) -> GrammarError:
    return GrammarError(f"it has {len(source)} characters as a grammar, more than {MAX_CHARS}")
