"""What an engine takes: its process seen from inside, and what its config foretells."""

from __future__ import annotations

import mmap
import sys
from types import ModuleType

import msgspec
import numpy as np
import psutil
import pytest
import torch

from pellucid.config import EngineConfig, ModelSettings
from pellucid.errors import ConfigError, PellucidError
from pellucid.kernels import native
from pellucid.lab import footprint, prediction
from pellucid.lab.experiment import Lab
from pellucid.lab.footprint import Footprint, Sample, Usage
from pellucid.lab.subject import Subject
from tests.lab.test_experiments import LAB, check, module

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system tells it on Linux only")


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    return module("memory")


def test_pages_are_resident_once_they_are_written() -> None:
    size = 64 * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            region.madvise(mmap.MADV_NOHUGEPAGE)
        pages = np.frombuffer(region, np.uint8)
        address = pages.ctypes.data
        assert footprint.resident(address, size) == 0
        for page in (0, 5, 6):
            pages[page * mmap.PAGESIZE] = 1
        assert footprint.resident(address, size) == 3 * mmap.PAGESIZE
        # A byte on either side of a border counts both pages.
        assert footprint.resident(address + 6 * mmap.PAGESIZE - 1, 2) == 2 * mmap.PAGESIZE
        del pages
    assert footprint.usage().rss == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


@pytest.fixture(scope="module")
def found(memory: ModuleType) -> tuple[ModuleType, object]:
    settings = memory.Settings(
        requests=6, prompt=(20, 20), answer=(30, 30), seats=3, context=128, pool_mib=4, every=1
    )
    return settings, memory.run(settings, LAB)


def test_memory(memory: ModuleType, found: tuple[object, object]) -> None:
    _, findings = found
    check(findings)
    rows = {row[0]: row for row in findings.tables[0].rows}
    assert rows["KV pool, reserved"][3] == pytest.approx(1)
    _, pool, backed, _ = rows["KV pool, backed at the end"]
    # With their scales four layers have 16 tensors, which begin and end within pages.
    assert 0 < backed <= pool + 32 * mmap.PAGESIZE / 1e6
    assert rows["activations, arena"][2] is None or 0.5 < rows["activations, arena"][3] < 2
    raw = findings.raw["found"]
    assert raw["samples"][-1]["blocks"] == raw["samples"][-1]["tokens"] == 0
    # Three at once, of 20 to 49 tokens in two to four blocks of 16.
    for one in raw["samples"][1:-1]:
        assert one["blocks"] * 16 - 15 * one["running"] <= one["tokens"] <= one["blocks"] * 16
        assert one["running"] <= 3
    paged, contiguous = findings.tables[1].rows
    assert contiguous[2] == 3 * 128
    assert paged[2] == pytest.approx(paged[1] / (1 - paged[3] / 100))


def test_the_expected_loss_is_that_of_a_request_that_grows(memory: ModuleType) -> None:
    blocks, lost = 0, []
    for known in range(1, 1 + 16 * 50):
        lost.append(max(0, 16 * blocks - known))  # between the steps
        blocks = -(-known // 16)  # the next step computes what is known
    assert memory.rounding_loss(16) == pytest.approx(sum(lost) / len(lost))


def test_areas_sum_up_to_what_the_system_counts(memory: ModuleType, found: object) -> None:
    _, findings = found
    samples = findings.raw["found"]["samples"]
    areas = findings.figures[0].series
    assert {one.style for one in areas} == {"area"}
    for index, sample in enumerate(samples):
        total = sum(one.y[index] for one in areas)
        assert total == pytest.approx(sample["usage"]["rss"] / 1e6)


def test_a_prediction_is_the_sum_of_the_shapes() -> None:
    config = EngineConfig.of(
        dtype="bfloat16", kernels="reference", max_num_seqs=2, kv_cache_memory_mib=1
    )
    one = prediction.predict(LAB.subject, config)
    hidden, inner, kv = 128, 256, 2 * 32
    layer = hidden * (hidden + 2 * kv) + hidden * hidden + 3 * hidden * inner
    assert one.weights == 2 * (512 * hidden + 4 * layer)
    assert one.token == 2 * 4 * kv * 2  # K and V of 4 layers in 2 bytes
    assert one.pool == (1 << 20) // (16 * one.token) * (16 * one.token)
    if native.obstacle(torch.device("cpu")) is None:
        runner = msgspec.structs.replace(config.runner, kernels="native")
        fast = prediction.predict(LAB.subject, msgspec.structs.replace(config, runner=runner))
        assert fast.activations == 4 * 256 * (2 * hidden + inner)
    short = msgspec.structs.replace(config.model, max_model_len=64)
    few = prediction.predict(LAB.subject, msgspec.structs.replace(config, model=short))
    assert few.pool == 2 * 2 * 64 * one.token  # twice what two requests can fill
    assert one.activations == 4 * 256 * (2 * hidden + 3 * inner)
    assert one.logits == 4 * 2 * 512


def test_packed_bits_are_those_of_the_format() -> None:
    assert prediction._packed_bytes("Q4_0", 2) * 8 == 4.5
    assert prediction._packed_bytes("Q4_1", 2) * 8 == 5.0
    assert prediction._packed_bytes("Q8_0", 2) * 8 == 8.5
    assert prediction._packed_bytes("F16", 4) == 4


def test_memory_says_what_was_not_foreseen(memory: ModuleType) -> None:
    end = Sample(1.0, Usage(300_000_000, 290_000_000, 0), 50_000_000, 0, 0, 0)
    start = Usage(200_000_000, 0, 0)
    found = Footprint(start, start, start, 0, "native", 40_000_000, 1, 10, 16, 1000, [end])
    rows = [["a", 10.0, 10.5, 1.05], ["b", 10.0, 20.0, 2.0], ["c", None, 5.0, None]]
    text = memory._on_parts(rows, found)
    assert text.startswith("At the end the process has 300 MB resident (290 MB PSS), of which 40")
    assert "neither 200 MB of interpreter and libraries nor 10 MB of all else, together 70%" in text
    assert text.endswith("fails by more than 10% for b 2.00 times.")
    assert memory._on_parts(rows[:1], found).endswith("What was predicted is met within 10%.")
    assert memory.shares(found, end).rest == 10_000_000 - 1
    waste = dict.fromkeys(("running", "tokens", "held", "mb", "contiguous"), 1.0)
    waste |= {"lost_blocks": 40.0, "lost_contiguous": 30.0, "fit_blocks": 1, "fit_contiguous": 1}
    assert "The hypothesis fails" in memory._on_waste(waste, found)


@pytest.mark.parametrize(
    ("length", "prompt", "why"),
    [(4096, 4, "model's limit of 2048"), (64, 64, "leaves no room for an answer")],
)
def test_a_process_that_fails_says_why(length: int, prompt: int, why: str) -> None:
    config = EngineConfig.of(device="cpu", kv_cache_memory_mib=1, max_model_len=length)
    task = footprint.Task(config, random=True, prompts=[[5] * prompt], answers=[1], every=1)
    with pytest.raises(PellucidError, match=why):
        footprint.run_apart(task)


def test_memory_needs_what_linux_tells(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = footprint.ROLLUP.with_name("no_such_file")
    monkeypatch.setattr(footprint, "ROLLUP", missing)
    with pytest.raises(ConfigError, match="cannot be read"):
        memory.run(memory.EXPERIMENT.quick, Lab(Subject(ModelSettings(model="random"), None)))
