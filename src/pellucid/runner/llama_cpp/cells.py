"""Which of llama.cpp's sequences holds which of the scheduler's blocks.

llama.cpp keeps keys and values in cells. A cell has one position, any number of sequences that see
it, and is free when the last of them lets go; a sequence cannot be told which cells to use. So the
scheduler's blocks are an account of cells, and this is the book: a block's *home* is the sequence
that computed it and the block's index there. Equal prefixes are shared by letting another sequence
see the cells as well. The sequence of a request that has left is *parked*: it keeps its cells until
the scheduler gives their blocks to somebody else.

    row 3 -> sequence 5     [ 8 | 2 | 7 | 4 ]    8 and 2 were found: their home is sequence 1,
                              `-.-'   `-.-'      which is parked, and 5 sees their cells, too
                             shared    homed at 5

llama.cpp has a few hundred sequences, the scheduler any number of blocks to remember. When there
are too many parked sequences, those that were used longest ago are dropped, and the scheduler is
told which blocks were lost with them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

NO_SEQUENCE = -1
Place = tuple[int, int]  # a sequence, and the index of one of its blocks


class CellMemory(Protocol):
    """llama.cpp's cells, by sequence and position; ends are exclusive, -1 means all."""

    def seq_rm(self, seq: int, begin: int, end: int) -> None:
        """The sequence no longer sees its cells of these positions."""
        ...

    def seq_cp(self, source: int, target: int, begin: int, end: int) -> None:
        """`target` sees what `source` sees of these positions."""
        ...


class Cells:
    """The account of blocks and sequences.

    Args:
        memory: what is accounted for.
        max_rows: rows that may be in use at once.
        num_seqs: sequences of the memory; at least twice `max_rows`, since a step may replace
            every row, and the old sequences are let go at its end.
        block_size: tokens of a block.
        park: keep the cells of requests that have left.
    """

    def __init__(
        self, memory: CellMemory, max_rows: int, num_seqs: int, block_size: int, *, park: bool
    ) -> None:
        if num_seqs < 2 * max_rows:
            raise ValueError(f"{num_seqs} sequences are too few for {max_rows} rows")
        self.seq_of_row = np.full(max_rows, NO_SEQUENCE, np.int32)
        self._memory = memory
        self._block_size = block_size
        self._max_parked = num_seqs - 2 * max_rows if park else 0
        self._free = list(range(num_seqs - 1, -1, -1))
        self._home: dict[int, Place] = {}  # of each block whose content is kept
        self._homed: list[set[int]] = [set() for _ in range(num_seqs)]  # the reverse
        self._parked: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._num_shared = [0] * max_rows  # blocks at a row's start whose home is elsewhere
        self._num_blocks = [0] * max_rows

    def enter(self, row: int, block_ids: list[int], num_shared: int) -> None:
        """A row begins with these blocks, of which the first `num_shared` hold a known prefix."""
        seq = self._free.pop()
        self.seq_of_row[row] = seq
        for source, begin, end in _runs(self._home[block] for block in block_ids[:num_shared]):
            self._memory.seq_cp(source, seq, *self._positions(begin, end))
            if source in self._parked:
                self._parked.move_to_end(source)
        self._num_shared[row] = self._num_blocks[row] = num_shared
        self.extend(row, block_ids[num_shared:])

    def extend(self, row: int, block_ids: list[int]) -> None:
        """A row gets blocks to write to; what they held before is let go."""
        self._let_go(block_ids)
        seq, index = int(self.seq_of_row[row]), self._num_blocks[row]
        for offset, block in enumerate(block_ids):
            self._home[block] = (seq, index + offset)
        self._homed[seq].update(block_ids)
        self._num_blocks[row] = index + len(block_ids)

    def leave(self, row: int) -> None:
        """A row ends; the blocks that it computed can still be shared."""
        seq = int(self.seq_of_row[row])
        self.seq_of_row[row] = NO_SEQUENCE
        if self._num_shared[row]:
            self._memory.seq_rm(seq, *self._positions(0, self._num_shared[row]))
        if self._homed[seq]:
            self._parked[seq] = None
        else:
            self._free.append(seq)

    def trim(self) -> list[int]:
        """Drop parked sequences beyond the limit; returns the blocks whose content is lost.

        Those who share such a block still see its cells; but nobody else will find them.
        """
        lost: list[int] = []
        while len(self._parked) > self._max_parked:
            seq, _ = self._parked.popitem(last=False)
            self._memory.seq_rm(seq, 0, -1)
            lost += self._homed[seq]
            for block in self._homed[seq]:
                del self._home[block]
            self._homed[seq].clear()
            self._free.append(seq)
        return lost

    def _let_go(self, block_ids: list[int]) -> None:
        places = []
        for block in block_ids:
            place = self._home.pop(block, None)
            if place is not None:
                places.append(place)
                self._homed[place[0]].remove(block)
        for seq, begin, end in _runs(sorted(places)):
            self._memory.seq_rm(seq, *self._positions(begin, end))
            if not self._homed[seq] and self._parked.pop(seq, NO_SEQUENCE) is None:
                self._free.append(seq)

    def _positions(self, begin: int, end: int) -> tuple[int, int]:
        return begin * self._block_size, end * self._block_size


def _runs(places: Iterable[Place]) -> Iterator[tuple[int, int, int]]:
    """(sequence, begin, end) of neighbouring blocks of one sequence."""
    run: tuple[int, int, int] | None = None
    for seq, index in places:
        if run is not None and run[0] == seq and run[2] == index:
            run = (seq, run[1], index + 1)
            continue
        if run is not None:
            yield run
        run = (seq, index, index + 1)
    if run is not None:
        yield run
