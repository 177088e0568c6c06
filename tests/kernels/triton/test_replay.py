"""Triton's attention and whole models in steps that are planned before their numbers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model, random_weights
from pellucid.runner import graphs, torch_runner
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
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


def test_replayed_steps_give_the_bits_of_others(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "FIRST_CONTEXT", 16)
    recorder, found = Again(), []
    for used in (None, recorder):
        monkeypatch.setattr(torch_runner.device_api, "graph_recorder", lambda _, r=used: r)
        settings = {"dtype": "float32", "device": "cpu", "num_kv_blocks": 8, "max_num_seqs": 4}
        config = EngineConfig.of(**settings, threads=1, cuda_graphs=True)
        cpu = torch.device("cpu")
        model = build_model(CONFIG, random_weights(CONFIG), ops, torch.float32, cpu)
        greedy = SamplingParams(temperature=0.0, logprobs=1)
        jobs = {name: Job([5] * length, greedy, 6) for name, length in (("a", 3), ("b", 14))}
        jobs["c"] = Job([7, 9], greedy, 2)
        Driver(TorchRunner(config, model=model)).run(jobs)
        found.append({name: (job.tokens, job.logprobs) for name, job in jobs.items()})
    assert found[0] == found[1]
    assert recorder.num_replayed > 0
