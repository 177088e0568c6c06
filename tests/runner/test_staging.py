"""What arrives on the device is the step, however late the copies are made."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.runner.base import Chunk, NewRow
from pellucid.runner.batch import UNKNOWN, Batch
from pellucid.runner.device import Link
from pellucid.runner.staging import NUM_BUFFERS, Ring, Staging
from pellucid.sampling_params import SamplingParams

CPU = torch.device("cpu")
BLOCK = 4


class LateLink(Link):
    """Copies nothing until a mark behind it is waited for: the latest that a GPU may do so."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.num_waits = 0

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.waiting.append((source, target))

    def mark(self) -> LateMark:
        return LateMark(self, len(self.waiting))

    def run(self, count: int | None = None) -> None:
        for source, target in self.waiting[:count]:
            target.copy_(source)
        del self.waiting[:count]


class LateMark:
    def __init__(self, link: LateLink, count: int) -> None:
        self.link = link
        self.last = link.waiting[count - 1]

    def wait(self) -> None:
        self.link.num_waits += 1
        places = [i for i, entry in enumerate(self.link.waiting) if entry is self.last]
        if places:
            self.link.run(places[0] + 1)


@given(sizes=st.lists(st.lists(st.integers(0, 5000), min_size=1, max_size=4), max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_buffer_is_not_written_again_before_it_was_copied(sizes: list[list[int]]) -> None:
    link = LateLink()
    ring = Ring(link)
    sent = []
    for number, parts in enumerate(sizes):
        arrays = [np.full(size, number * 10 + i) for i, size in enumerate(parts)]
        sent.append((arrays, ring.send(arrays)))
    assert len(link.waiting) <= NUM_BUFFERS, "the ring bounds what is under way"
    link.run()
    for arrays, tensors in sent:
        for array, tensor in zip(arrays, tensors, strict=True):
            assert np.array_equal(tensor.numpy(), array)


def test_the_host_waits_only_when_the_ring_is_used_up() -> None:
    link = LateLink()
    ring = Ring(link)
    for _ in range(NUM_BUFFERS):
        ring.send([np.arange(3)])
    assert link.num_waits == 0
    ring.send([np.arange(3)])
    assert link.num_waits == 1


def test_device_inputs_describe_the_step() -> None:
    batch, staging = Batch(3, 40, BLOCK), Staging(Link(CPU), 3, 10)
    for name, tokens in {"a": [1, 2, 3, 4, 5, 6], "b": [7, 8]}.items():
        batch.add(NewRow(name, tokens, len(tokens), SamplingParams()))
    staging.load(batch.gather([Chunk("a", 0, 4, False, [5, 6])]), np.array([3]))
    step = batch.gather([Chunk("a", 4, 2, True, []), Chunk("b", 0, 2, True, [3])])
    token_ids, inputs, wanted = staging.load(step, np.array([1, 3]))
    assert token_ids.dtype == torch.int64
    assert token_ids.tolist() == [5, 6, 7, 8]
    assert wanted.tolist() == [1, 3]
    assert inputs.positions.tolist() == [4, 5, 0, 1]
    assert inputs.slot_mapping.tolist() == [24, 25, 12, 13]
    assert inputs.query_start.tolist() == [0, 2, 4]
    assert inputs.seq_lens.tolist() == inputs.seq_lens_list == [6, 2]
    assert inputs.query_lens_list == [2, 2]
    assert inputs.block_tables.tolist() == [[5, 6], [3, 0]]
    kinds = (inputs.positions, inputs.slot_mapping, inputs.block_tables, inputs.seq_lens)
    assert [t.dtype for t in kinds] == [torch.int64, torch.int64, torch.int32, torch.int32]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_tables_on_the_device_follow_the_host_by_differences(data: st.DataObject) -> None:
    batch, staging = Batch(3, 40, BLOCK), Staging(Link(CPU), 3, 10)
    held: dict[str, int] = {}
    for number in range(data.draw(st.integers(1, 12))):
        gone = data.draw(st.sets(st.sampled_from(sorted(held)))) if held else set()
        for name in gone:
            batch.drop(name)
            del held[name]
        chunks = [
            Chunk(name, count * BLOCK, 1, True, [number * 3 + 1]) for name, count in held.items()
        ]
        if len(held) < 3:
            batch.add(NewRow(f"r{number}", [9] * 40, 40, SamplingParams()))
            first = data.draw(st.integers(1, 3))
            blocks = [100 + number * 3 + i for i in range(first)]
            chunks.append(Chunk(f"r{number}", 0, first * BLOCK, True, blocks))
            held[f"r{number}"] = 0
        chunks = [chunk for chunk in chunks if chunk.start < 40]
        if not chunks:
            continue
        step = batch.gather(chunks)
        for chunk in chunks:
            held[chunk.request_id] += len(chunk.new_block_ids)
        _, inputs, _ = staging.load(step, np.array([0]))
        for i, chunk in enumerate(chunks):  # behind a request's own blocks lies whatever did
            own = held[chunk.request_id]
            assert inputs.block_tables[i, :own].tolist() == step.block_tables[i, :own].tolist()


def test_unknown_tokens_are_those_last_drawn_for_their_row() -> None:
    batch, staging = Batch(3, 40, BLOCK), Staging(Link(CPU), 3, 10)
    for name, tokens in {"a": [1, 2], "b": [7]}.items():
        batch.add(NewRow(name, tokens, len(tokens), SamplingParams()))
    rows = np.array([batch.row_of("a"), batch.row_of("b")])
    batch.gather([Chunk("a", 0, 2, True, [1]), Chunk("b", 0, 1, True, [2])])
    staging.remember(rows[::-1].copy(), torch.tensor([70, 10]))
    batch.append(rows, np.full(2, UNKNOWN))
    batch.add(NewRow("c", [4, 5, 6], 3, SamplingParams()))
    step = batch.gather(
        [Chunk("b", 1, 1, True, []), Chunk("c", 0, 3, True, [3]), Chunk("a", 2, 1, True, [])]
    )
    token_ids, _, _ = staging.load(step, np.array([0]))
    assert token_ids.tolist() == [70, 4, 5, 6, 10]
