"""Whole tiny models through the runner: Triton's ops give the reference's tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.config import EngineConfig
from pellucid.kernels.reference import ReferenceOps
from pellucid.messages import TokenLogprobs
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.device import DEVICE, where_torch_is_not_invariant
from tests.runner.driver import Driver, Job
from tests.tiny_models import make_hf

Answers = dict[str, tuple[list[int], list[TokenLogprobs]]]


def answers(runner: TorchRunner, names: str, chunk: int = 100) -> Answers:
    """Tokens and log probabilities of each."""
    greedy = SamplingParams(temperature=0.0, logprobs=1)
    prompts = {"a": [3, 1, 4, 1, 5], "b": [9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], "c": [7]}
    jobs = {name: Job(prompts[name], greedy, num_tokens=3) for name in names}
    Driver(runner).run(jobs, chunk)
    return {name: (job.tokens, job.logprobs) for name, job in jobs.items()}


def make_runner(folder: Path, **settings: str) -> TorchRunner:
    same = {"dtype": "float32", "device": str(DEVICE), "threads": 1, "num_kv_blocks": 8}
    return TorchRunner(EngineConfig.of(model=str(folder), **same, **settings))


@pytest.mark.parametrize(("arch", "layers"), [("qwen3", 1), ("gemma2", 2)])
def test_greedy_tokens_are_those_of_the_reference(
    ops: ReferenceOps, tmp_path: Path, arch: str, layers: int
) -> None:
    """And their bits are the same alone, batched and chunked."""
    make_hf(arch, tmp_path, num_hidden_layers=layers)
    with where_torch_is_not_invariant():
        runners = {name: make_runner(tmp_path, kernels=name) for name in ("triton", "reference")}
    assert runners["triton"].info().kernels == "triton"
    together = answers(runners["triton"], "abc")
    expected = answers(runners["reference"], "abc")
    assert {name: tokens for name, (tokens, _) in together.items()} == {
        name: tokens for name, (tokens, _) in expected.items()
    }
    assert answers(runners["triton"], "b") == {"b": together["b"]}
    assert answers(runners["triton"], "ab", chunk=5) == {name: together[name] for name in "ab"}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_models_give_the_tokens_of_the_reference(
    ops: ReferenceOps, tmp_path: Path, quantization: str
) -> None:
    make_hf("qwen2", tmp_path, num_hidden_layers=1)
    found = {}
    for kernels in ("triton", "reference"):
        runner = make_runner(tmp_path, kernels=kernels, quantization=quantization)
        found[kernels] = {name: tokens for name, (tokens, _) in answers(runner, "abc").items()}
    assert found["triton"] == found["reference"]
