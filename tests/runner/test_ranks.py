"""What ranks tell each other, and what becomes of all when one is lost. Real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.errors import ConfigError, EngineDead, ModelError
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.base import Runner
from pellucid.runner.batch import StepRows
from pellucid.runner.factory import create_random_runner, create_runner
from pellucid.runner.parallel import workers
from pellucid.runner.parallel.messages import Start, Step
from pellucid.sampling_params import SamplingParams
from tests.runner.driver import Driver, Job
from tests.tiny_models import make_hf

SIZE = 3
ONE_RANK = """
import json, os, sys
from pathlib import Path
import psutil
import torch
from pellucid.kernels.ranks import rows_of_rank
from pellucid.runner.parallel.collectives import ProcessRanks

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
ranks = ProcessRanks(rank, size, folder, lambda: None)
ranks.enter(torch.device("cpu"))
found = {"least": ranks.least(10 - rank)}
# In float32 only this order gives 1.
found["order"] = ranks.sum(torch.tensor([[1e8, -1e8, 1.0][rank]])).tolist()
generator = torch.Generator().manual_seed(rank)
parts = torch.randn(40, 33, generator=generator)
whole = ranks.sum(parts)
found["rows"] = all(torch.equal(ranks.sum(parts[i : i + 1]), whole[i : i + 1]) for i in range(40))
halves = ranks.sum(parts.bfloat16())
found["bfloat16"] = [str(halves.dtype), halves.float().sub(whole).abs().max().item()]
own = rows_of_rank(10, rank, size)
columns = torch.arange(20.0).view(2, 10)[:, own.start : own.stop]
found["joined"] = ranks.joined(columns, 10).tolist()
found["told"] = ranks.told(torch.tensor([rank + 7, 2])).tolist()
found["listening"] = [
    c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN
]
ranks.leave()
print(json.dumps(found))
"""


def reachable_interfaces() -> list[str]:
    """Those at which other machines may find this one."""
    return [
        name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]


def test_collectives(tmp_path: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": ",".join(reachable_interfaces()[:1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_RANK, str(rank), str(SIZE), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(SIZE)
    ]
    found = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    for rank, told in enumerate(found):
        assert told["least"] == 10 - (SIZE - 1)
        assert told["order"] == [1.0]
        assert told["rows"] is True, "a row's sum does not depend on the others"
        dtype, error = told["bfloat16"]
        assert dtype == "torch.bfloat16"
        assert 0 < error < 0.1
        assert told["told"] == [7, 2]
        assert set(told["listening"]) <= {"127.0.0.1"}
        if rank == 0:
            assert told["joined"] == [list(range(10)), list(range(10, 20))]


def test_all_of_a_step_is_told() -> None:
    told = {*Step.__struct_fields__} - {"wanted", "widest"}
    # Block tables are told by what is new in them; adapters are refused.
    assert told == {field.name for field in fields(StepRows)} - {"block_tables", "adapters"}
    numbers = {name: np.arange(3) for name in ("rows", "token_ids", "positions", "slot_mapping")}
    step = StepRows(
        **numbers,
        query_start=np.arange(4, dtype=np.int32),
        seq_lens=np.arange(5, 8, dtype=np.int32),
        block_tables=np.zeros((3, 7), np.int32),
        new_blocks=[(1, 0, [4, 5])],
    )
    message = msgspec.msgpack.encode(Step.of(step, np.array([2])))
    found, wanted = msgspec.msgpack.decode(message, type=Step).unpacked()
    assert wanted.tolist() == [2]
    assert found.block_tables.shape == (3, 7)
    assert found.new_blocks == step.new_blocks
    for name in told - {"new_blocks"}:
        given, got = getattr(step, name), getattr(found, name)
        assert (got.dtype, got.tolist()) == (given.dtype, given.tolist()), name


def config_of(size: int, **settings: Any) -> EngineConfig:
    defaults = {"device": "cpu", "kernels": "reference", "dtype": "float32", "threads": 1}
    defaults |= {"num_kv_blocks": 20, "max_num_seqs": 4, "max_model_len": 64}
    return EngineConfig.of(tensor_parallel_size=size, **(defaults | settings))


def children() -> list[psutil.Process]:
    """Of this process, those that are workers."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "pellucid.runner.parallel.worker" in child.cmdline()]


def answer(runner: Runner) -> list[int]:
    job = Job([3, 1, 4, 1, 5], SamplingParams(temperature=0.0), num_tokens=6)
    return Driver(runner).run({"a": job})["a"].tokens


def test_a_closed_runner_leaves_nothing_and_makes_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = answer(create_random_runner(config_of(1), "tiny"))
    for _ in range(2):
        runner = create_random_runner(config_of(2), "tiny")
        (worker,) = children()
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert answer(runner) == expected
        runner.close()
        assert not worker.is_running()
        assert not folder.exists()


def test_a_rank_that_is_killed_ends_the_next_step_by_name() -> None:
    runner = create_random_runner(config_of(4), "tiny")
    workers = children()
    workers[1].kill()
    with pytest.raises(EngineDead, match=r"rank [123] died \(killed by signal 9\)"):
        answer(runner)
    runner.close()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_process_leads_one_group_at_a_time() -> None:
    runner = create_random_runner(config_of(2), "tiny")
    with pytest.raises(ConfigError, match="one group of ranks at a time"):
        create_random_runner(config_of(2), "tiny")
    assert len(children()) == 1
    assert len(answer(runner)) == 6
    runner.close()


def sampled(runner: Runner) -> dict[str, list[int]]:
    """What an engine says that launches a step before it knows the tokens of the one before."""
    config = EngineConfig.of(async_scheduling=True)
    core = create_core(runner, config.cache, config.scheduler)
    found: dict[str, list[int]] = {"greedy": [], "sampled": []}
    for place, name in enumerate(found):
        params = SamplingParams(temperature=place, seed=7, max_tokens=10, ignore_eos=True)
        prompt = pack_tokens([place, 5, 9])
        core.add(AddRequest(request_id=name, prompt=prompt, sampling=params, arrival_time=0))
    while core.has_work:
        for delta in core.step().deltas:
            found[delta.request_id] += delta.token_ids
    return found


def test_tokens_that_stay_on_the_device_reach_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's sampler leaves them there; its products are with shares of rounded weights."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # of the worker; this process has it already
    runner = create_random_runner(config_of(2, kernels="triton", quantization="int8"), "tiny")
    found = sampled(runner)
    runner.close()
    assert found == sampled(create_random_runner(config_of(1, quantization="int8"), "tiny"))
    tokens = [token for answer in found.values() for token in answer]
    assert min(tokens) < 256 <= max(tokens), "of both ranks' halves of the vocabulary"


def in_rank_1(monkeypatch: pytest.MonkeyPatch, change: Callable[[Start], None]) -> None:
    """Change what rank 1 is told, and nobody else."""

    def started(*fields: Any) -> Start:
        start = Start(*fields)
        if start.rank == 1:
            change(start)
        return start

    monkeypatch.setattr(workers, "Start", started)


def test_a_rank_that_cannot_load_its_shard_is_an_error_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere(start: Start) -> None:
        start.shape, start.config = None, config_of(2, model="/nowhere/model.gguf", offline=True)

    in_rank_1(monkeypatch, elsewhere)
    with pytest.raises(ModelError, match=r"rank 1: .*nowhere"):
        create_random_runner(config_of(2), "tiny")
    assert children() == []


def test_a_rank_that_has_too_little_memory_is_an_error_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes part in finding the smallest pool; then all find that it is none."""

    def poor(start: Start) -> None:
        start.config = config_of(2, num_kv_blocks=None, memory_fraction=1e-12)

    in_rank_1(monkeypatch, poor)
    with pytest.raises(ConfigError, match="no room for a single block"):
        create_random_runner(config_of(2), "tiny")
    assert children() == []


def test_the_pool_is_that_of_the_rank_with_the_least_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def poorer(start: Start) -> None:
        start.config = config_of(2, num_kv_blocks=7)

    in_rank_1(monkeypatch, poorer)
    runner = create_random_runner(config_of(2), "tiny")
    assert runner.kv_capacity().num_blocks == 7
    assert answer(runner) == answer(create_random_runner(config_of(1), "tiny"))
    runner.close()


def test_a_rank_that_dies_while_starting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    begin = time.monotonic()
    with pytest.raises(EngineDead, match=r"rank 1 died \(exit status 1\)"):
        create_random_runner(config_of(2), "tiny")
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runner": "fake"}, "--tensor-parallel-size is for --runner torch, not fake"),
        ({"runner": "llama-cpp"}, "not llama-cpp"),
        ({"kernels": "native"}, "kernels 'native'.*--tensor-parallel-size"),
        ({"size": 3}, "4 attention heads cannot be divided among 3"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused_by_name(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    make_hf("llama", tmp_path)
    with pytest.raises(ConfigError, match=words):
        create_runner(config_of(**({"size": 2} | settings), model=str(tmp_path)))
    assert children() == []
