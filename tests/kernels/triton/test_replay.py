"""Triton's attention and whole models in steps that are planned before their numbers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model, random_weights
from pellucid.runner import graphs, torch_runner
from pellucid.runner.device import Link
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.device import DEVICE
from tests.engine.helpers import drain, message, tokens
from tests.kernels.test_reference_attention import Case
from tests.runner.driver import Driver, Job

CONFIG = ModelConfig(
    architecture="qwen3",
    vocab_size=64,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=32,
    max_position=512,
    qk_norm=True,
)

SIZES = {"dtype": "float32", "num_kv_blocks": 8, "max_num_seqs": 4}


class Again:
    """Records nothing: computes again, from the buffers of the recording."""

    def __init__(self) -> None:
        self.num_replayed = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()

        def replay() -> None:
            self.num_replayed += 1
            function()

        return replay


@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize("limit", [601, 1500])
def test_a_bound_on_contexts_gives_the_bits_of_their_lengths(
    ops: ReferenceOps, window: int | None, limit: int
) -> None:
    q, kv, inputs = Case(4, 2, 32).step([(0, 254, 1), (1, 255, 1), (2, 600, 1), (3, 3, 1)])
    unseen = replace(inputs, query_lens_list=[], seq_lens_list=[], context_limit=limit)
    found = []
    for step in (inputs, unseen):
        step.plan = ops.plan_attention(step, kv, 4, [window])
        found.append(ops.paged_attention(q, kv, step, 0.2, window))
    assert torch.equal(*found)


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_full_workspace_takes_more_launches_to_the_same_bits(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch, tiles: int
) -> None:
    """Which the GPU's memory relies on: contexts are long, and rows are many."""
    from pellucid.kernels.triton import attention_plan

    q, kv, inputs = Case(4, 2, 32).step([(0, 254, 1), (1, 255, 1), (2, 600, 1), (3, 3, 1)])
    unseen = replace(inputs, query_lens_list=[], seq_lens_list=[], context_limit=601)
    inputs.plan = ops.plan_attention(inputs, kv, 4, [None, 40])
    expected = [ops.paged_attention(q, kv, inputs, 0.2, window) for window in (None, 40)]
    room = tiles * 3 * 2 * 16 * (32 + 2) * 4  # partitions, heads, rows, columns and two sums
    monkeypatch.setattr(attention_plan, "ATTENTION_WORKSPACE", room)
    for step in (inputs, unseen):
        step.plan = ops.plan_attention(step, kv, 4, [None, 40])
        for group in step.plan.groups:
            assert group.count * group.parts[None] <= 3 * tiles
        assert len(step.plan.groups) > 1
        found = [ops.paged_attention(q, kv, step, 0.2, window) for window in (None, 40)]
        assert all(map(torch.equal, found, expected))


def test_replayed_steps_give_the_bits_of_others(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "FIRST_CONTEXT", 16)
    recorder, found = Again(), []
    for used in (None, recorder):
        monkeypatch.setattr(torch_runner.device_api, "graph_recorder", lambda _, r=used: r)
        settings = {
            "dtype": "float32",
            "device": str(DEVICE),
            "num_kv_blocks": 8,
            "max_num_seqs": 4,
        }
        config = EngineConfig.of(**settings, threads=1, cuda_graphs=True)
        model = build_model(CONFIG, random_weights(CONFIG), ops, torch.float32, DEVICE)
        greedy = SamplingParams(temperature=0.0, logprobs=1)
        jobs = {name: Job([5] * length, greedy, 6) for name, length in (("a", 3), ("b", 14))}
        jobs["c"] = Job([7, 9], greedy, 2)
        Driver(TorchRunner(config, model=model)).run(jobs)
        found.append({name: (job.tokens, job.logprobs) for name, job in jobs.items()})
    assert found[0] == found[1]
    assert recorder.num_replayed > 0


def test_the_loop_that_plans_ahead_gives_the_tokens_of_the_plain_one(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a sampler that leaves its tokens on the device, which feeds them to the next step."""
    monkeypatch.setattr(torch_runner.device_api, "graph_recorder", lambda _: Again())
    kinds = [
        {"temperature": 0.0, "logprobs": 1},
        {"temperature": 1.0, "seed": 3, "top_p": 0.8, "stop_token_ids": list(range(20))},
        {"temperature": 1.0, "seed": 4, "top_k": 5, "repetition_penalty": 1.3},
    ]
    found = []
    for ahead in (False, True):
        settings = {
            "dtype": "float32",
            "device": str(DEVICE),
            "num_kv_blocks": 8,
            "max_num_seqs": 4,
        }
        config = EngineConfig.of(**settings, threads=1, cuda_graphs=True, async_scheduling=ahead)
        model = build_model(CONFIG, random_weights(CONFIG), ops, torch.float32, DEVICE)
        engine = create_core(TorchRunner(config, model=model), config.cache, config.scheduler)
        for i, kind in enumerate(kinds):
            engine.add(message(f"r{i}", [5 + i, 3], max_tokens=5, **kind))
        deltas = drain(engine)
        assert engine.runner._steps._sampling._sampler.__class__.__name__ == "TritonSampler"
        found.append({name: (tokens(each), each[-1].logprobs) for name, each in deltas.items()})
    assert found[0] == found[1]


def test_a_step_that_goes_on_is_sent_by_one_copy(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How its rows sample, and where their tokens go, the device knows from the step before."""
    from pellucid.sample.triton import table

    copies: list[int] = []
    send, to_device = Link.send, table.to_device
    monkeypatch.setattr(Link, "send", lambda *args: copies.append(1) or send(*args))
    monkeypatch.setattr(table, "to_device", lambda *args: copies.append(1) or to_device(*args))
    config = EngineConfig.of(**SIZES, device=str(DEVICE), threads=1)
    model = build_model(CONFIG, random_weights(CONFIG), ops, torch.float32, DEVICE)
    engine = create_core(TorchRunner(config, model=model), config.cache, config.scheduler)
    for i in range(3):
        engine.add(message(f"r{i}", [5 + i, 3], max_tokens=4 + i, temperature=1.0, top_p=0.9))
    by_step = []
    while engine.has_work:
        copies.clear()
        engine.step()
        by_step.append(len(copies))
    # Blocks, the step, lines, rows, rows; then steps that go on; one has left: rows and rows.
    assert by_step[:4] == [5, 1, 1, 1]
    assert by_step[4] == 3
