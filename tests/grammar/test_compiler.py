"""Grammars against `jsonschema` and `re`: whatever the masks let through is right, to its end."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from pellucid.grammar import source
from pellucid.grammar.compiler import Grammar, GrammarCompiler, bitmask_words
from pellucid.grammar.errors import GrammarError
from tests.grammar.schemas import UNSUPPORTED, schema

EOS = 256
WORDS = [b'{"', b'": ', b'", "', b"\n  ", b"name", b"tru", b"e,", b"}}", b'"}', "é".encode(), b"12"]
TOKENS = [bytes([i]) for i in range(256)] + [b"<eos>", b"<tool>", *WORDS]
NO_OTHERS = {"additionalProperties": False}
VOCAB_SIZE = len(TOKENS) + 3  # as padded embeddings have


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENS, [EOS, EOS + 1], [EOS], VOCAB_SIZE)


def allowed(matcher: Any) -> list[int]:
    mask = np.zeros(bitmask_words(VOCAB_SIZE), np.uint32)
    matcher.fill(mask)
    ids: list[int] = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
    assert max(ids) < len(TOKENS)
    return ids


def wander(grammar: Grammar, seed: int, most: int = 2000) -> str | None:
    """A text of random allowed tokens; None if it came to no end."""
    rng = random.Random(seed)
    matcher, taken = grammar.matcher(), list[int]()
    while len(taken) < most:
        choices = allowed(matcher)
        # Leave strings and numbers now and then, and end where that is allowed.
        closing = [i for i in choices if TOKENS[i] in (b'"', b"}", b"]", b",", b"e", b'"}')]
        if EOS in choices and rng.random() < 0.5:
            return b"".join(TOKENS[i] for i in taken).decode()
        choices = [i for i in choices if i != EOS] or [EOS]
        token = rng.choice(closing if closing and rng.random() < 0.3 else choices)
        if token == EOS:
            return b"".join(TOKENS[i] for i in taken).decode()
        matcher.accept([token])
        taken.append(token)
    return None


@pytest.mark.parametrize("seed", range(60))
def test_what_a_schema_lets_through_is_valid(compiler: GrammarCompiler, seed: int) -> None:
    wanted = schema(seed)
    grammar = compiler.compile(source.from_json_schema(wanted))
    texts = [text for k in range(3) if (text := wander(grammar, 10 * seed + k)) is not None]
    for text in texts:
        jsonschema.validate(json.loads(text), wanted)
    assert texts


@pytest.mark.parametrize("wanted", UNSUPPORTED, ids=str)
def test_what_cannot_be_kept_is_refused(compiler: GrammarCompiler, wanted: Any) -> None:
    with pytest.raises(GrammarError):
        compiler.compile(source.from_json_schema(wanted))


@pytest.mark.parametrize("regex", ["[a-c]{2}/\\d+", "(yes|no)\n", "\\/a?", "x{3}", "^ab?$"])
def test_a_regex_matches_as_a_whole(compiler: GrammarCompiler, regex: str) -> None:
    grammar = compiler.compile(source.from_regex(regex))
    for seed in range(5):
        text = wander(grammar, seed)
        assert text is not None
        assert re.fullmatch(regex, text)


def test_many_optional_properties_can_be_followed(compiler: GrammarCompiler) -> None:
    wanted = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1000)}}
    text = wander(compiler.compile(source.from_json_schema(wanted | NO_OTHERS)), 1)
    assert text is not None
    jsonschema.validate(json.loads(text), wanted | NO_OTHERS)


def test_choices_may_hold_anything(compiler: GrammarCompiler) -> None:
    choices = ["yes", 'a "b"\\\n', "ünï", "<eos>", ""]
    grammar = compiler.compile(source.from_choice(choices))
    assert {wander(grammar, seed) for seed in range(60)} == set(choices)


@pytest.mark.parametrize("text", ['start: "ab" | "cd"', 'root ::= "ab" | "cd"'])
def test_both_dialects_of_grammars(compiler: GrammarCompiler, text: str) -> None:
    grammar = compiler.compile(source.from_grammar(text))
    assert {wander(grammar, seed) for seed in range(20)} == {"ab", "cd"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: source.from_regex("("),
        lambda: source.from_regex("a\\"),
        lambda: source.from_regex("[^\\s\\S]"),
        lambda: source.from_choice([]),
        lambda: source.from_choice(["x" * source.MAX_CHARS]),
        lambda: source.from_grammar("start: nothing"),
        lambda: source.from_grammar('root ::= "a'),
        lambda: source.from_grammar(""),
        lambda: source.from_json_schema("{"),
        lambda: source.from_json_schema({"type": "nothing"}),
        lambda: source.from_json_schema({"enum": []}),
        lambda: source.from_json_schema(json.loads('{"items":' * 70 + "{}" + "}" * 70)),
    ],
)
def test_what_is_wrong_is_refused(compiler: GrammarCompiler, make: Any) -> None:
    with pytest.raises(GrammarError):
        compiler.compile(make())


def test_the_end_is_allowed_only_where_the_grammar_may_end(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(source.from_regex("ab+")).matcher()
    may_end = []
    for char in "abbb":
        may_end.append(EOS in allowed(matcher))
        matcher.accept([ord(char)])
    assert may_end == [False, False, True, True]


def test_special_tokens_are_no_text(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(source.from_regex("(.|\n)*")).matcher()
    assert EOS + 1 not in allowed(matcher)


def test_a_matcher_is_a_function_of_its_tokens(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(source.from_json_schema(schema(3)))
    matcher, taken, rng = grammar.matcher(), list[int](), random.Random(0)
    for _ in range(25):
        # As after a preemption: made anew from all tokens at once.
        assert allowed(grammar.matcher(taken)) == allowed(matcher)
        token = rng.choice(allowed(matcher))
        if token == EOS:
            break
        matcher.accept([token])
        taken.append(token)
    assert taken


def test_a_token_that_is_not_allowed_is_an_error_that_stays(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(source.from_regex("ab")).matcher()
    with pytest.raises(GrammarError):
        matcher.accept([ord("x")])
    with pytest.raises(GrammarError):
        allowed(matcher)
