"""Backs the first blocks of the KV pool with memory before requests need them.

The pool is memory that the system backs when it is first written, a page at a time, which costs a
step milliseconds. Blocks are handed out in ascending order, so the first ones are written ahead,
by a thread that runs when nothing else wants its core. The rest of the pool stays lazy: who serves
one short chat should not pay with gigabytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator

from torch import Tensor

from pellucid.kernels.interface import KVLayer

AHEAD_BYTES = 1 << 30  # of the pool, over all layers
PIECE_BYTES = 1 << 20  # at a time: up to a few milliseconds in a virtual machine
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14; it changes no byte


class FirstTouch:
    """Starts at once. Elsewhere than on Linux, and on old kernels, it does nothing."""

    def __init__(self, layers: list[KVLayer], num_bytes: int = AHEAD_BYTES) -> None:
        self._tensors = [
            tensor
            for layer in layers
            for tensor in (layer.k, layer.v, layer.k_scale, layer.v_scale)
            if tensor is not None
        ]
        total = sum(tensor.nbytes for tensor in self._tensors)
        self._share = min(1.0, num_bytes / max(1, total))
        self.num_touched = 0  # bytes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="first-touch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the pool is no longer touched."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            madvise = ctypes.CDLL(None).madvise
            # Of this thread. An ordinary one would displace one of a step's threads, for which all
            # others wait: while it runs, steps take a fifth longer.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except (OSError, AttributeError, TypeError):
            return
        for start, length in self._pieces():
            if self._stopping.is_set():
                return
            # ctypes lets go of the interpreter's lock meanwhile.
            if madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _POPULATE_WRITE) != 0:
                return
            self.num_touched += length

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """(address, bytes) of whole pages, block after block over all layers."""
        ends = [int(tensor.nbytes * self._share) for tensor in self._tensors]
        for offset in range(0, max(ends, default=0), PIECE_BYTES):
            for tensor, end in zip(self._tensors, ends, strict=True):
                yield from _whole_pages(tensor, offset, min(offset + PIECE_BYTES, end))


def _whole_pages(tensor: Tensor, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The pages that lie in the tensor's bytes [begin, end), if there are any."""
    page = mmap.PAGESIZE
    first = -(-(tensor.data_ptr() + begin) // page) * page
    last = (tensor.data_ptr() + end) // page * page
    if last > first:
        yield first, last - first
