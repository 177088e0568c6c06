"""Backing the pool's first blocks with memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pellucid.kernels.interface import KVLayer, allocate_kv
from pellucid.runner.first_touch import FirstTouch

MIB = 1 << 20


def make_pool(mib: int) -> list[KVLayer]:
    """Four layers."""
    return allocate_kv(4, mib * MIB // (8 * 1024), 16, 1, 16, torch.float32, torch.device("cpu"))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_as_much_is_touched_as_was_asked_for() -> None:
    pool = make_pool(128)
    before = resident()
    touch = FirstTouch(pool, 48 * MIB)
    touch._thread.join()
    grown = resident() - before
    if grown < MIB:
        pytest.skip("this kernel has no MADV_POPULATE_WRITE")
    assert 40 * MIB < grown < 64 * MIB
    assert not any(layer.k.any() or layer.v.any() for layer in pool)


def test_it_stops_when_told_and_changes_nothing() -> None:
    pool = make_pool(256)
    for layer in pool:
        layer.k.fill_(3.0)
    FirstTouch(pool, 256 * MIB).stop()
    assert all((layer.k == 3.0).all() for layer in pool)
