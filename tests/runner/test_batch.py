"""Rows and gathering against a token-by-token reading of the plan."""

from __future__ import annotations

import numpy as np
import pytest

from pellucid.runner.base import Chunk, NewRow
from pellucid.runner.batch import UNKNOWN, Batch
from pellucid.sampling_params import SamplingParams

BLOCK = 4


@pytest.fixture
def batch() -> Batch:
    return Batch(max_num_seqs=3, max_model_len=40, block_size=BLOCK)


def new_row(name: str, tokens: list[int], num_prompt: int | None = None) -> NewRow:
    return NewRow(name, tokens, num_prompt or len(tokens), SamplingParams())


def expected_step(chunks: list[Chunk], tokens: dict[str, list[int]], tables: dict[str, list[int]]):
    """(token, position, slot) of every token of the step, one by one."""
    out = []
    for chunk in chunks:
        for position in range(chunk.start, chunk.start + chunk.num_tokens):
            block = tables[chunk.request_id][position // BLOCK]
            slot = block * BLOCK + position % BLOCK
            out.append((tokens[chunk.request_id][position], position, slot))
    return out


def triples(step) -> list[tuple[int, int, int]]:
    columns = (step.token_ids, step.positions, step.slot_mapping)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def test_a_step_of_prompts_chunks_and_decodes(batch):
    tokens = {"a": list(range(100, 111)), "b": [7, 8, 9], "c": list(range(50, 70))}
    for name, ids in tokens.items():
        batch.add(new_row(name, ids))
    tables = {"a": [9, 2, 5], "b": [3], "c": [8, 7, 6, 4, 1]}
    first = [
        Chunk("c", 0, 7, False, tables["c"]),
        Chunk("a", 0, 11, True, tables["a"]),
        Chunk("b", 0, 2, False, tables["b"]),
    ]
    step = batch.gather(first)
    assert triples(step) == expected_step(first, tokens, tables)
    assert step.query_start.tolist() == [0, 7, 18, 20]
    # Only as wide as the longest context of the step needs.
    assert step.block_tables.tolist() == [[8, 7, 6], [9, 2, 5], [3, 0, 0]]

    batch.append(step.rows[1:2], np.array([1000]))
    tokens["a"].append(1000)
    second = [Chunk("a", 11, 1, True, []), Chunk("c", 7, 13, True, []), Chunk("b", 2, 1, True, [])]
    step = batch.gather(second)
    assert triples(step) == expected_step(second, tokens, tables)

    batch.append(step.rows, np.array([2000, 3000, 4000]))
    for name, token in zip("acb", (2000, 3000, 4000), strict=True):
        tokens[name].append(token)
    tables["a"].append(0)
    third = [Chunk("b", 3, 1, True, []), Chunk("a", 12, 1, True, [0])]
    assert triples(batch.gather(third)) == expected_step(third, tokens, tables)


def test_rows_are_reused_and_leave_nothing_behind(batch):
    for name in "abc":
        batch.add(new_row(name, [1] * 30))
    batch.gather([Chunk(name, 0, 30, True, list(range(1, 9))) for name in "abc"])
    batch.drop("b")
    batch.drop("unknown")
    batch.add(new_row("d", [4, 5, 6]))
    assert len(batch) == 3
    step = batch.gather([Chunk("a", 29, 1, True, []), Chunk("d", 0, 3, True, [20])])
    assert step.block_tables[1].tolist() == [20] + [0] * 7
    assert batch.known_tokens(int(step.rows[1])).tolist() == [4, 5, 6]


def test_a_preempted_request_gets_a_new_row_with_new_blocks(batch):
    row = batch.add(new_row("a", [1, 2, 3, 4, 5]))
    batch.gather([Chunk("a", 0, 5, True, [1, 2])])
    batch.append(np.array([row]), np.array([6]))
    batch.drop("a")
    batch.add(new_row("a", [1, 2, 3, 4, 5, 6], num_prompt=5))
    chunk = Chunk("a", 0, 6, True, [8, 0])
    step = batch.gather([chunk])
    assert triples(step) == expected_step([chunk], {"a": [1, 2, 3, 4, 5, 6]}, {"a": [8, 0]})
    assert batch.num_prompt_tokens[step.rows[0]] == 5


@pytest.mark.parametrize(
    "chunk",
    [Chunk("a", 0, 7, True, [1, 2]), Chunk("a", 0, 5, False, [1])],
    ids=["tokens", "blocks"],
)
def test_a_chunk_beyond_its_tokens_or_blocks_is_refused(batch, chunk):
    batch.add(new_row("a", [1, 2, 3, 4, 5, 6]))
    with pytest.raises(ValueError, match="ends behind token"):
        batch.gather([chunk])


def test_an_empty_step_is_empty(batch):
    step = batch.gather([])
    assert triples(step) == []
    assert step.query_start.tolist() == [0]


def test_tokens_are_filled_in_later_unless_the_row_changed_hands(batch):
    rows = np.array([batch.add(new_row("a", [1])), batch.add(new_row("b", [2, 3]))])
    places = batch.num_tokens[rows]
    batch.append(rows, np.array([UNKNOWN, UNKNOWN]))
    batch.drop("b")
    other = batch.add(new_row("c", [4, 5, 6]))
    assert other == rows[1]
    batch.fill(rows, places, np.array([7, 8]))
    assert batch.known_tokens(rows[0]).tolist() == [1, 7]
    assert batch.known_tokens(other).tolist() == [4, 5, 6]
