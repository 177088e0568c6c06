"""Reasoning parsers: thoughts and answer, however the text is cut."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.frontend.reasoning import REASONING_FORMATS, reasoning_format
from pellucid.frontend.reasoning.base import Opening, ReasoningParser
from pellucid.frontend.reasoning.rules import bounded_thought_rules
from pellucid.frontend.structured import grammar_of_parts
from pellucid.frontend.tools.rules import any_text
from pellucid.grammar.compiler import GrammarCompiler, Matcher, bitmask_words


def read(opening: Opening, pieces: list[str]) -> tuple[str, str]:
    parser = ReasoningParser(opening)
    parts = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(
    ("opening", "text", "thought", "answer"),
    [
        (Opening.THINKING, "\nwhy\n\nso\n</think>\n\n42", "why\n\nso", "42"),
        (Opening.THINKING, "<think>\nwhy</think>42 ", "why", "42 "),
        (Opening.THINKING, "never done ", "never done", ""),
        (Opening.THINKING, "a < b </thin", "a < b </thin", ""),
        (Opening.MAYBE, "<think>\nwhy\n</think>\n\n42", "why", "42"),
        (Opening.MAYBE, " 42 </think>", "", " 42 </think>"),
        (Opening.MAYBE, "<thi", "", "<thi"),
        (Opening.MAYBE, "<think>cut off", "cut off", ""),
        (Opening.ANSWER, " 42 <think>", "", " 42 <think>"),
        (Opening.THINKING, "</think>42</think>", "", "42</think>"),
    ],
)
def test_thoughts_and_answer(opening: Opening, text: str, thought: str, answer: str) -> None:
    assert read(opening, [text]) == (thought, answer)
    assert read(opening, list(text)) == (thought, answer)


FRAGMENTS = st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "text", "é"])


@given(st.sampled_from(Opening), st.lists(FRAGMENTS, max_size=10), st.data())
def test_cutting_the_text_changes_nothing(
    opening: Opening, parts: list[str], data: st.DataObject
) -> None:
    text = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(opening, pieces) == read(opening, [text]) == read(opening, list(text))


@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_a_thought_that_the_prompt_has_closed_is_over(name: str) -> None:
    form = reasoning_format(name)
    assert form.opening("<|im_start|>assistant\n<think>\n\n</think>\n\n") is Opening.ANSWER
    assert form.opening("<|im_start|>assistant\n<think>\n") is Opening.THINKING


def test_only_qwen_may_answer_without_thinking() -> None:
    assert reasoning_format("qwen3").opening("assistant\n") is Opening.MAYBE
    assert reasoning_format("deepseek_r1").opening("assistant\n") is Opening.THINKING


# ---- budgets

PIECES = ["hello", "</thi", "nk>x", "x<", "></", "\n</think>\n", "<think>", "<think>x", "</think>"]
TEXT = [chr(i) for i in range(128)] + PIECES
TOKENS = [*TEXT, "<tool>", "<eos>"]
BEGIN, END, TOOL, EOS = map(TOKENS.index, ("<think>", "</think>", "<tool>", "<eos>"))
BUDGET = 5


@cache
def compiler(*special: int) -> GrammarCompiler:
    tokens = [token.encode() for token in TOKENS]
    return GrammarCompiler(tokens, [TOOL, EOS, *special], [EOS], len(TOKENS))


def allowed(matcher: Matcher) -> set[int]:
    mask = np.zeros(bitmask_words(len(TOKENS)), np.uint32)
    matcher.fill(mask)
    return set(np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist())


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("special", [(), (BEGIN, END)], ids=["text", "special"])
@given(choices=st.lists(st.integers(0, 19), min_size=BUDGET, max_size=BUDGET))
def test_a_budget_ends_the_thoughts_and_forbids_nothing_else(
    special: tuple[int, ...], begins: bool, choices: list[int]
) -> None:
    begin = BEGIN if special else None
    thought = "thought SPACE", bounded_thought_rules(END, BUDGET, begin=begin, begins=begins)
    grammar = grammar_of_parts(thought, "any", any_text([f"<[{TOOL}]>", '"text"']), None)
    matcher = compiler(*special).compile(grammar).matcher()
    text, num_tokens = "", 0
    if begins:
        assert BEGIN in allowed(matcher)
        assert all("<think>".startswith(TOKENS[i][:7]) for i in allowed(matcher))
        matcher.accept([BEGIN])
        num_tokens = 0 if special else 1
    while num_tokens < BUDGET:
        able = {i for i in range(len(TEXT)) if "</think>" not in text + TEXT[i]} - {*special}
        assert allowed(matcher) == able | {END}
        token = sorted(able, reverse=True)[choices[num_tokens]]
        matcher.accept([token])
        text += TOKENS[token]
        num_tokens += 1
    assert allowed(matcher) == {END}
    matcher.accept([END])
    for _ in range(BUDGET + 1):
        assert allowed(matcher) == set(range(len(TOKENS))) - {*special}
        matcher.accept([TOOL])
