"""Tool parsers: what they find, and that cutting the text anywhere changes nothing."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.frontend.tools import TOOL_FORMATS, detect_tool_format, tool_format
from pellucid.frontend.tools.base import CallArguments, CallBegin, Content, Piece, Tool
from pellucid.grammar.compiler import Grammar, GrammarCompiler
from pellucid.grammar.errors import GrammarError
from pellucid.grammar.source import from_grammar, literal

Call = tuple[str, str]

ARGUMENTS: Any = {"city": 'Zürich "old" } ] town', "days": [1, 2.5, {"x": None}], "warm": True}
CALLS = [("weather", ARGUMENTS), ("get_time-2", {})]


def read(name: str, pieces: list[str]) -> tuple[str, list[Call]]:
    """Content, and the calls with the text of their arguments."""
    parser = tool_format(name).parser()
    found: list[Piece] = []
    for piece in pieces:
        found += parser.push(piece)
    found += parser.finish()
    content, calls = "", []
    for item in found:
        if isinstance(item, Content):
            assert item.text
            content += item.text
        elif isinstance(item, CallBegin):
            assert item.index == len(calls)
            calls.append((item.name, ""))
        else:
            assert isinstance(item, CallArguments)
            assert item.text
            assert item.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + item.text)
    return content, calls


def values(calls: list[Call]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_what_a_format_writes_it_reads(name: str) -> None:
    content, calls = read(name, [tool_format(name).spell(CALLS)])
    assert content == ""
    assert values(calls) == CALLS


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_plain_text_stays_as_it_is(name: str) -> None:
    for text in ("", " ", "Hello <tool [TOOL and {braces}.\n", "  \n[1, 2]\n", "<", "[", "{", "{}"):
        assert read(name, [text]) == (text, [])


HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
F = ("f", '{"a": 1}')


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("hermes", f"Let me see.\n{HERMES}\n{HERMES}\n", "Let me see.", [F, F]),
        ("hermes", f"{HERMES}\n\nDone.", "Done.", [F]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [F]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [F]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [F]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
        ("hermes", "<tool_call>\nnothing</tool_call>", "<tool_call>\nnothing</tool_call>", []),
        ("hermes", '<tool_call>{"foo": 1}', '<tool_call>{"foo": 1}', []),
        ("hermes", f"<tool_call>x {HERMES}", "<tool_call>x", [F]),
        ("hermes", HERMES.replace("}}", "} oh") + HERMES, "", [F, F]),
        ("llama3_json", '{"name": "f", "parameters": {"a": 1}}', "", [F]),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [F]),
        ("llama3_json", '{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [F]),
        ("llama3_json", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
        ("llama3_json", '{"name": "Bob"}', '{"name": "Bob"}', []),
        ("llama3_json", 'So {"name": "f"}', 'So {"name": "f"}', []),
        ("mistral", 'Ok.[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', "Ok.", [F]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{"b": 2}', "", [F, ("g", '{"b": 2}')]),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]123[ARGS]{"a": 1}', "", [F]),
        ("mistral", "[TOOL_CALLS] what?", "[TOOL_CALLS] what?", []),
        ("mistral", "[TOOL_CALLS][1, 2]", "[TOOL_CALLS][1, 2]", []),
        ("pythonic", "[f(a=1)]", "", [F]),
        ("pythonic", " [f(a=1), f(a=1)]\n", "", [F, F]),
        ("pythonic", "[g(x='a\\'s', y=[true])]", "", [("g", '{"x": "a\'s", "y": [true]}')]),
        ("pythonic", "[g(z=None)]", "", [("g", '{"z": null}')]),
        ("pythonic", "[g(z={'k': -1.5})]", "", [("g", '{"z": {"k": -1.5}}')]),
        ("pythonic", "[f(1)]", "[f(1)]", []),
        ("pythonic", "[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),
        ("pythonic", "[f(a=1+1)]", "[f(a=1+1)]", []),
        ("pythonic", "[link](http://x)", "[link](http://x)", []),
    ],
)  # fmt: skip
def test_what_models_write(name: str, text: str, content: str, calls: list[Call]) -> None:
    assert read(name, [text]) == (content, calls)
    assert read(name, list(text)) == (content, calls)


def test_arguments_are_passed_on_while_they_arrive() -> None:
    parser = tool_format("hermes").parser()
    assert parser.push('<tool_call>{"name": "f", "arg') == []
    assert parser.push('uments": {"a": "lo') == [CallBegin(0, "f"), CallArguments(0, '{"a": "lo')]
    assert parser.push("ng") == [CallArguments(0, "ng")]
    assert parser.push('"}}\n</tool_call>') == [CallArguments(0, '"}')]


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "[",
        "]", "{", "}", '"', "\\", ":", ",", ";", " ", "\n", '"name"', '"arguments"', "f",
        '{"name": "f", "arguments": {"a": "}"}}', '{"name": "g", "parameters": {}}', "null", "1",
        "f(a=1)", "g(", ")", "'", "text", '"type"', HERMES, "é",
    ]
)  # fmt: skip


@pytest.mark.parametrize("name", TOOL_FORMATS)
@given(parts=st.lists(FRAGMENTS, max_size=14), data=st.data())
def test_cutting_the_text_changes_nothing(name: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read(name, [text])
    assert read(name, pieces) == whole
    assert read(name, list(text)) == whole


@pytest.mark.parametrize("name", TOOL_FORMATS)
@given(parts=st.lists(FRAGMENTS, max_size=14))
def test_text_without_a_call_is_never_lost(name: str, parts: list[str]) -> None:
    text = "".join(parts)
    content, calls = read(name, [text])
    if not calls:
        hidden = content if name != "llama3_json" else content.replace("<|python_tag|>", "")
        shown = text if name != "llama3_json" else text.replace("<|python_tag|>", "")
        assert hidden.strip() == shown.strip()


MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
EOS = 256 + len(MARKERS)


@cache
def grammar(name: str, *, special: bool) -> Grammar:
    """Any text, or calls of a function `only` without arguments; by bytes, and tokens of MARKERS.

    Those are control tokens if the format's markers are `special`.
    """
    form = tool_format(name)
    marker = {
        text: f"<[{256 + MARKERS.index(text)}]>" if special else literal(text)
        for text in form.markers
    }
    tool = Tool("only", {"type": "object", "properties": {}, "additionalProperties": False})
    rules = "start: prose_or_calls\n" + form.prose_rules(marker)
    rules += form.calls_rules([tool], parallel=True, marker=marker)
    tokens = [bytes([i]) for i in range(256)] + [text.encode() for text in MARKERS] + [b"<eos>"]
    others = range(256, EOS) if special else ()
    compiler = GrammarCompiler(tokens, [*others, EOS], [EOS], len(tokens))
    return compiler.compile(from_grammar(rules))


@pytest.mark.parametrize(("name", "opening"), [("llama3_json", "{"), ("pythonic", "[")])
def test_text_beside_a_grammar_of_calls_cannot_begin_like_one(name: str, opening: str) -> None:
    rules = grammar(name, special=False)
    call = tool_format(name).spell([("only", {})])
    for text in (call, "", " ", "words", " words", f"x{opening}", "\n\nw"):
        rules.matcher([*text.encode(), EOS])
    for text in (opening, f" {opening}", f"\n \n{opening}"):
        with pytest.raises(GrammarError):
            rules.matcher([*text.encode(), *b"x"])


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_tool_that_says_nothing_of_its_arguments_takes_any(name: str) -> None:
    form = tool_format(name)
    marker = {text: literal(text) for text in form.markers}
    tools = [Tool("none", {"type": "object", "additionalProperties": False})]
    tools.append(Tool("any", {"type": "object"}))
    rules = "start: calls\n" + form.calls_rules(tools, parallel=True, marker=marker)
    tokens = [bytes([i]) for i in range(256)] + [b"<eos>"]
    grammar = GrammarCompiler(tokens, [256], [256], 257).compile(from_grammar(rules))
    calls = [("any", {}), ("any", {"a": 1}), ("none", {}), ("any", {"a": [1, "x"], "b_2": None})]
    text = form.spell(calls).replace("'", '"').replace("None", "null")
    grammar.matcher([*text.encode(), 256])
    with pytest.raises(GrammarError):
        grammar.matcher([*form.spell([("none", {"a": 1})]).encode()])


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", TOOL_FORMATS)
@given(parts=st.lists(FRAGMENTS, max_size=8))
def test_no_text_beside_a_grammar_of_calls_is_another_call(
    name: str, special: bool, parts: list[str]
) -> None:
    """Also not where the model spells out what it has a token for."""
    matcher, said = grammar(name, special=special).matcher(), b""
    for byte in "".join(parts).encode():
        try:
            matcher.accept([byte])
        except GrammarError:
            break
        said += bytes([byte])
    assert read(name, [said.decode(errors="ignore")])[1] in ([], [("only", "{}")])


def test_the_format_is_read_off_the_chat_template() -> None:
    assert detect_tool_format(["... <tool_call></tool_call> ..."]) == "hermes"
    assert detect_tool_format(["{{ '[TOOL_CALLS]' }}"]) == "mistral"
    assert detect_tool_format(["<|python_tag|>"]) == "llama3_json"
    assert detect_tool_format(["{{ messages }}"]) == "hermes"


def test_mistral_ids_have_nine_letters_or_digits() -> None:
    ids = {tool_format("mistral").call_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(len(name) == 9 and name.isalnum() for name in ids)
