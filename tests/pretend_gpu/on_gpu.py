"""What is run on the pretended GPU by `test_pretended.py`: the ways of a step to a GPU and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.runner.factory import create_runner
from pellucid.runner.graphs import GraphExecutor
from pellucid.runner.torch_runner import TorchRunner
from tests.device import float_weights_too
from tests.engine.helpers import drain, message, tokens
from tests.engine.test_ahead import engine, told
from tests.pretend_gpu.tensors import WORK, OnGPU
from tests.tiny_adapters import make_peft
from tests.tiny_models import make_hf

CUDA = torch.device("cuda")
SIZES = {"dtype": "float32", "threads": 1, "num_kv_blocks": 24, "max_num_seqs": 4}


@pytest.fixture(autouse=True)
def bits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing measured counts
    with float_weights_too():
        yield


def test_the_gpu_is_pretended() -> None:
    x = torch.ones(3, device="cuda")
    assert isinstance(x, OnGPU)
    assert x.is_cuda
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    late = torch.empty(3).copy_(x, non_blocking=True)
    assert late.tolist() != [1.0] * 3
    torch.cuda.synchronize()
    assert late.tolist() == [1.0] * 3
    pinned = torch.zeros(3, pin_memory=True)
    x.copy_(pinned, non_blocking=True)
    pinned += 1
    with pytest.raises(RuntimeError, match="before it had been copied"):
        torch.cuda.synchronize()


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_requests_of_all_kinds(kernels: str) -> None:
    """Recorded, and planned ahead or not; their answers are those of the CPU."""
    on_cpu = told(engine("reference", ahead=False))
    plain = told(engine(kernels, ahead=False, device=CUDA))
    for name, outcome in on_cpu.items():
        assert plain[name][0] == outcome[0], name
        assert plain[name][3] == outcome[3], name
    if kernels == "triton":  # the reference's bits depend on the number of rows there
        assert told(engine(kernels, ahead=True, device=CUDA)) == plain


def made(folder: Path, device: str, **settings: Any) -> EngineCore:
    config = EngineConfig.of(model=str(folder), device=device, **SIZES, **settings)
    return create_core(create_runner(config), config.cache, config.scheduler)


def answers(core: EngineCore, *adapters: int | None) -> dict[str, list[int]]:
    for index, adapter in enumerate(adapters or (None, None, None)):
        prompt = [(7 * k * k + index) % 90 + 3 for k in range(3 + 17 * index)] * 2
        fields = {"temperature": 0.0, "ignore_eos": True, "adapter": adapter}
        core.add(message(f"r{index}", prompt, arrival=float(index), **fields))
    return {name: tokens(deltas) for name, deltas in drain(core).items()}


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("llama", {"kernels": "reference", "kv_cache_dtype": "int8"}),
        ("llama", {"kernels": "triton", "kv_cache_dtype": "int8", "quantization": "int4"}),
        ("llama", {"kernels": "reference", "speculative": "ngram"}),
        ("gemma2", {"kernels": "triton", "async_scheduling": True}),
        ("gpt2", {"kernels": "triton"}),
        ("phi3", {"kernels": "reference"}),
        ("qwen2moe", {"kernels": "reference"}),
        ("qwen2moe", {"kernels": "triton", "quantization": "int8"}),
    ],
    ids=str,
)
def test_models(arch: str, settings: dict[str, Any], tmp_path: Path) -> None:
    make_hf(arch, tmp_path, num_hidden_layers=2 if arch == "gemma2" else 1)
    same = {k: v for k, v in settings.items() if k in ("kv_cache_dtype", "quantization")}
    expected = answers(made(tmp_path, "cpu", kernels="reference", **same))
    core = made(tmp_path, "cuda", cuda_graphs=True, **settings)
    recorded = isinstance(core.runner.executor, GraphExecutor)
    assert recorded == (arch != "qwen2moe")
    assert answers(core) == expected
    if recorded:
        assert core.runner.executor.recorded


def test_a_draft_model(tmp_path: Path) -> None:
    make_hf("llama", tmp_path, num_hidden_layers=1)
    drafted = {"speculative": "draft", "draft_model": str(tmp_path)}
    core = made(tmp_path, "cuda", kernels="reference", **drafted)
    assert answers(core) == answers(made(tmp_path, "cpu", kernels="reference"))


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_adapters(kernels: str, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_hf("llama", base, num_hidden_layers=1)
    make_peft(base, adapter)
    found = []
    for device, used in (("cpu", "reference"), ("cuda", kernels)):
        core = made(base, device, kernels=used, cuda_graphs=device == "cuda")
        assert isinstance(core.runner, TorchRunner)
        core.runner.load_adapter(0, str(adapter))
        core.runner.load_adapter(1, str(adapter))
        core.runner.unload_adapter(1)
        found.append(answers(core, None, 0, None))
    assert found[0] == found[1]
    assert found[0] != answers(core, None, None, None)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_several_gpus(kernels: str, tmp_path: Path) -> None:
    """A process for each, in which it is the current one; recorded, sums of all included."""
    make_hf("llama", tmp_path, num_hidden_layers=1)
    expected = answers(made(tmp_path, "cpu", kernels="reference"))
    settings = {"tensor_parallel_size": 2, "cuda_graphs": True, "kernels": kernels}
    core = made(tmp_path, "cuda", **settings, async_scheduling=kernels == "triton")
    assert answers(core) == expected
    core.runner.close()


def test_a_gpu_is_chosen_by_its_number(tmp_path: Path) -> None:
    make_hf("llama", tmp_path, num_hidden_layers=1)
    expected = answers(made(tmp_path, "cpu", kernels="reference"))
    try:
        assert answers(made(tmp_path, "cuda:1", kernels="triton", cuda_graphs=True)) == expected
    finally:
        torch.cuda.set_device(0)


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": 3},
    "penalised": {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    "biased": {"temperature": 0.0, "logit_bias": {5: 2.0}, "min_tokens": 4},
    "logprobs": {"temperature": 0.0, "logprobs": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_does_not_wait(kind: str) -> None:
    """Steps that decode are launched without waiting for the device, however tokens are drawn."""
    core = engine("triton", ahead=True, device=CUDA)
    assert isinstance(core.runner, TorchRunner)
    for index in range(3):
        fields = {"ignore_eos": True, "max_tokens": 24, **KINDS[kind]}
        core.add(message(f"r{index}", [index + 3] * (5 + index), **fields))
    for _ in range(8):
        core.step()
    WORK.waits.clear()
    for _ in range(8):
        core.step()
    assert not WORK.waits
    assert len(core.scheduler.running) == 3
