"""The same with adapters: some requests have one, some another, some none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.kernels import native
from pellucid.messages import LoadAdapter
from pellucid.runner.base import AdaptableRunner
from pellucid.runner.factory import create_runner
from tests.device import DEVICE, INVARIANT_KERNELS, float_weights_too
from tests.e2e.test_invariance import (
    ANSWER,
    BLOCKS,
    LENGTHS,
    PROMPTS,
    Answers,
    SmallPool,
    engine,
    run,
    speculating,
)

pytestmark = pytest.mark.model

KERNELS = (*INVARIANT_KERNELS, f"{INVARIANT_KERNELS[-1]} int8")
HIDDEN, KV, INNER, LAYERS = 576, 192, 1536, 30  # of the default model
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
ADAPTERS = {name: index % 3 - 1 for index, name in enumerate(PROMPTS)}  # -1: none
ADAPTED = {name: number for name, number in ADAPTERS.items() if number >= 0}


def write_adapter(folder: Path, seed: int, rank: int, modules: list[str]) -> Path:
    torch.manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module in modules:
            out, inner = MODULES[module]
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inner) * inner**-0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank) * 0.05
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    some = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    return [write_adapter(home / "0", 0, 8, [*MODULES]), write_adapter(home / "1", 1, 20, some)]


@pytest.fixture(scope="module", params=KERNELS)
def runner(smollm2_path: Path, request: pytest.FixtureRequest) -> Iterator[AdaptableRunner]:
    kernels, _, kv_dtype = request.param.partition(" ")
    if kernels == "native" and native.obstacle(DEVICE) is not None:
        pytest.skip("the C++ part is not built")
    config = EngineConfig.of(
        model=str(smollm2_path),
        kernels=kernels,
        dtype="float32",
        kv_cache_dtype=kv_dtype or "float32",
        num_kv_blocks=BLOCKS,
        max_model_len=1024,
        device=str(DEVICE),
        threads=1 if kernels == "reference" else 2,
    )
    with float_weights_too():
        made = create_runner(config)
    assert isinstance(made, AdaptableRunner)
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(runner: AdaptableRunner, adapters: list[Path]) -> Answers:
    """Each by itself; those without an adapter before any was loaded."""
    answers: Answers = {}
    for name in sorted(PROMPTS, key=lambda name: ADAPTERS[name]):
        core = engine(runner, prefix_caching=False)
        if name in ADAPTED:
            plain = run(core, [name])
            loaded(core, adapters)
        answers |= run(core, [name], adapters=ADAPTED)
        assert name not in ADAPTED or answers[name] != plain[name]
    return answers


def loaded(core: EngineCore, adapters: list[Path]) -> EngineCore:
    for number, path in enumerate(adapters):
        core.handle(LoadAdapter(adapter=number, name=str(number), path=str(path)))
    return core


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_chunk_tokens": 7}, {"max_num_batched_tokens": 53}],
    ids=["batched", "chunked", "unevenly"],
)
def test_in_company(
    runner: AdaptableRunner, adapters: list[Path], alone: Answers, settings: dict[str, int]
) -> None:
    core = loaded(engine(runner, prefix_caching=False, **settings), adapters)
    assert run(core, list(PROMPTS), adapters=ADAPTED) == alone


def test_served_from_the_prefix_cache(
    runner: AdaptableRunner, adapters: list[Path], alone: Answers
) -> None:
    core = loaded(engine(runner), adapters)
    run(core, list(PROMPTS))  # the same tokens without adapters: of no use to those with one
    run(core, list(PROMPTS), adapters=ADAPTED)
    hits = core.scheduler.counters.prefix_hits
    assert hits == sum((n - 1) // 16 * 16 for n in LENGTHS if f"p{n}" not in ADAPTED)
    assert run(core, list(PROMPTS), adapters=ADAPTED) == alone
    found = core.scheduler.counters.prefix_hits - hits
    assert found == sum((n - 1) // 16 * 16 for n in LENGTHS)


def test_preempted(runner: AdaptableRunner, adapters: list[Path], alone: Answers) -> None:
    pool = SmallPool(runner, sum(-(-n // 16) for n in LENGTHS) + 1)
    core = loaded(engine(pool, prefix_caching=False), adapters)
    assert run(core, list(PROMPTS), adapters=ADAPTED) == alone
    assert core.scheduler.counters.preemptions > 0


def test_speculated(runner: AdaptableRunner, adapters: list[Path], alone: Answers) -> None:
    core = loaded(speculating(runner, alone), adapters)
    steps = core.scheduler._step
    assert run(core, list(PROMPTS), adapters=ADAPTED) == alone
    assert core.scheduler._step - steps < ANSWER * len(PROMPTS)
