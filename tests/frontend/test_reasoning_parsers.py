"""Reasoning parsers: thoughts and answer, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.frontend.reasoning import REASONING_FORMATS, reasoning_format
from pellucid.frontend.reasoning.base import Opening, ReasoningParser


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
