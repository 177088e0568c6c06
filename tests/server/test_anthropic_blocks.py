"""Content blocks of an answer: whatever its parts, the events are well-formed and lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.server.anthropic.blocks import Blocks, put_together
from pellucid.server.anthropic.protocol import ToolUseBlock
from pellucid.server.anthropic.responses import BlockDelta, BlockEvent, BlockStart, BlockStop
from pellucid.server.responses import ChatDelta, FunctionDelta, ToolCallDelta

PIECES = st.text('ab" {', min_size=1, max_size=3)
BRACKETS = {BlockStart: "(", BlockDelta: ".", BlockStop: ")"}


def begin_call(index: int) -> ChatDelta:
    function = FunctionDelta("f", "")
    return ChatDelta(tool_calls=[ToolCallDelta(index, function, f"call_{index}", "function")])


def continue_call(index: int, text: str) -> ChatDelta:
    return ChatDelta(tool_calls=[ToolCallDelta(index, FunctionDelta(arguments=text))])


def events_of(parts: list[ChatDelta]) -> list[BlockEvent]:
    blocks = Blocks()
    return [event for part in parts for event in blocks.push(part)] + list(blocks.finish())


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[ChatDelta]]:
    """Blocks, as type and text, and the parts of an answer that is made of them."""
    blocks: list[tuple[str, str]] = []
    parts: list[ChatDelta] = []
    for kind in draw(st.lists(st.sampled_from(["thinking", "text", "tool_use"]), max_size=6)):
        index = len(blocks)
        pieces = draw(st.lists(PIECES, min_size=1, max_size=4))
        if kind == "tool_use":
            parts += [begin_call(index), *(continue_call(index, piece) for piece in pieces)]
        elif blocks and blocks[-1][0] == kind:
            continue
        elif kind == "text":
            parts += [ChatDelta(content=piece) for piece in pieces]
        else:
            parts += [ChatDelta(reasoning=piece) for piece in pieces]
        blocks.append((kind, "".join(pieces)))
    return blocks, parts


@given(answers())
def test_every_part_is_in_its_block(
    answer: tuple[list[tuple[str, str]], list[ChatDelta]],
) -> None:
    expected, parts = answer
    events = events_of(parts)
    brackets = "".join(BRACKETS[type(event)] for event in events)
    assert brackets.replace(".", "") == "()" * len(expected)
    assert ")." not in brackets
    written = [""] * len(expected)
    for event in events:
        if isinstance(event, BlockDelta) and not hasattr(event.delta, "signature"):
            (field,) = event.delta.__struct_fields__
            written[event.index] += getattr(event.delta, field)
    assert written == [said for _, said in expected]
    whole = put_together(events)
    assert [block.__struct_config__.tag for block in whole] == [kind for kind, _ in expected]
    for block, (kind, said) in zip(whole, expected, strict=True):
        if kind != "tool_use":
            assert getattr(block, kind) == said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ('{"x": [1, 2.5, null, "é"]}', {"x": [1, 2.5, None, "é"]}),
        ('{"x": 123456789012345678901234567890}', {"x": 123456789012345678901234567890}),
        ('{"x": "Ro', {"INVALID_JSON": '{"x": "Ro'}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"x": 1e999}', {"INVALID_JSON": '{"x": 1e999}'}),
        ("[" * 100_000, {"INVALID_JSON": "[" * 100_000}),
    ],
)
def test_the_input_of_a_call_is_an_object_whatever_was_written(text: str, value: Any) -> None:
    (block,) = put_together(events_of([begin_call(0), continue_call(0, text)]))
    assert isinstance(block, ToolUseBlock)
    assert block.input == value
