"""Backing the pool's first blocks with memory."""

from __future__ import annotations

import sys
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.kernels.interface import KVLayer, allocate_kv
from pellucid.runner.first_touch import FirstTouch

MIB = 1 << 20


def make_pool(mib: int) -> list[KVLayer]:
    """Four layers."""
    return allocate_kv(4, mib * MIB // (8 * 1024), 16, 1, 16, torch.float32, torch.device("cpu"))


def num_present(start: int, end: int) -> int:
    """How many of the pages that lie in [start, end) are in memory."""
    first, last = -(-start // PAGESIZE), end // PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(8 * first)
        entries = np.frombuffer(pagemap.read(8 * (last - first)), np.uint64)
    return int((entries >> np.uint64(63)).sum())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_first_blocks_of_every_layer_are_in_memory() -> None:
    pool = make_pool(128)
    touch = FirstTouch(pool, 48 * MIB)
    touch._thread.join()
    assert 46 * MIB < sum(length for _, length in touch._pieces()) <= 48 * MIB
    found = {
        num_present(part.data_ptr(), part.data_ptr() + 6 * MIB)
        for layer in pool
        for part in (layer.k, layer.v)
    }
    if found == {0}:
        pytest.skip("this kernel has no MADV_POPULATE_WRITE")
    pages = 6 * MIB // PAGESIZE  # the system may take a few back, or move them just now
    assert all(0.99 * pages < count <= pages for count in found), found
    assert not any(layer.k.any() or layer.v.any() for layer in pool)


def test_it_stops_when_told_and_changes_nothing() -> None:
    pool = make_pool(256)
    for layer in pool:
        layer.k.fill_(3.0)
    FirstTouch(pool, 256 * MIB).stop()
    assert all((layer.k == 3.0).all() for layer in pool)
