"""The answer does not depend on the company: the real model, compared bit for bit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.kernels import native
from pellucid.kernels.dispatch import select_ops
from pellucid.load.quantized import quantized
from pellucid.load.random import RepeatedNoise
from pellucid.messages import AddRequest, TokenLogprobs, pack_tokens
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model
from pellucid.runner.base import AdaptableRunner, KVCapacity, Runner, StepPlan
from pellucid.runner.factory import create_runner
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.device import DEVICE, INVARIANT_KERNELS, float_weights_too
from tests.engine.prophet import Prophet

pytestmark = pytest.mark.model

ANSWER = 8
BLOCKS = 256
# Lengths on both sides of the tiles of 16 rows and of the partitions of attention.
LENGTHS = (3, 16, 17, 40, 129, 300)
PROMPTS = {f"p{n}": [(1_009 * n + 7_919 * k * k) % 40_000 + 100 for k in range(n)] for n in LENGTHS}

# ... and the type of the KV pool, float32 unless it is named.
KERNELS = (
    *INVARIANT_KERNELS,
    *(f"{INVARIANT_KERNELS[-1]} {t}" for t in ("float16", "bfloat16", "int8")),
    *(() if DEVICE.type == "cuda" else ("reference int8", "reference experts", "native experts")),
)
# In place of the real model where the name says so: a mixture, with more experts than some steps
# have rows and a vocabulary that the prompts fit.
EXPERTS = ModelConfig(
    architecture="qwen2moe",
    vocab_size=40_200,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_position=1024,
    attention_bias=True,
    num_experts=24,
    experts_per_token=3,
    expert_size=32,
    shared_expert_size=64,
    sparse_layers=(True, False, True),
    tie_embeddings=True,
)

Answers = dict[str, list[TokenLogprobs]]


@pytest.fixture(scope="module", params=KERNELS)
def runner(smollm2_path: Path, request: pytest.FixtureRequest) -> Iterator[Runner]:
    kernels, _, variant = request.param.partition(" ")
    has_experts = variant == "experts"
    if kernels == "native" and native.obstacle(DEVICE) is not None:
        pytest.skip("the C++ part is not built")
    config = EngineConfig.of(
        model=str(smollm2_path),
        kernels=kernels,
        dtype="float32",
        kv_cache_dtype="float32" if has_experts else variant or "float32",
        num_kv_blocks=BLOCKS,
        max_model_len=1024,
        device=str(DEVICE),
        # Many small products on several OpenMP threads crawl when something else wants a core.
        threads=1 if kernels == "reference" else 2,
    )
    with float_weights_too():
        made = _runner_of_experts(config) if has_experts else create_runner(config)
    yield made
    made.close()


def _runner_of_experts(config: EngineConfig) -> Runner:
    weights = quantized(RepeatedNoise(EXPERTS), "int8")
    ops = select_ops(config.runner.kernels, DEVICE)
    return TorchRunner(config, model=build_model(EXPERTS, weights, ops, torch.float32, DEVICE))


class SmallPool:
    """A runner that owns up to fewer blocks than it has, so that the scheduler has to preempt."""

    def __init__(self, runner: AdaptableRunner, num_blocks: int) -> None:
        self._runner = runner
        self._num_blocks = num_blocks
        self.execute = runner.execute
        self.drafter = runner.drafter
        self.close = runner.close
        self.info = runner.info
        self.load_adapter = runner.load_adapter
        self.unload_adapter = runner.unload_adapter

    def kv_capacity(self) -> KVCapacity:
        return replace(self._runner.kv_capacity(), num_blocks=self._num_blocks)


def engine(runner: Runner, **settings: object) -> EngineCore:
    config = EngineConfig.of(**{"speculative": "none", **settings})
    return EngineCore(runner, config.cache, config.scheduler)


def speculating(runner: Runner, answers: Answers) -> EngineCore:
    """Its guesses are right up to 0 to 3 tokens, in turn."""
    prophet = Prophet([3, 0, 2, 1])
    for name, answer in answers.items():
        prophet.texts[name] = PROMPTS[name] + [entry.token_id for entry in answer]
    config = EngineConfig.of(prefix_caching=False)
    drafting = Drafting(prophet, most_per_request=3, step_tokens=99)
    return EngineCore(runner, config.cache, config.scheduler, drafting)


def run(
    core: EngineCore,
    names: list[str],
    *,
    temperature: float = 0.0,
    adapters: Mapping[str, int] = MappingProxyType({}),
) -> Answers:
    for index, name in enumerate(names):
        core.add(
            AddRequest(
                request_id=name,
                prompt=pack_tokens(PROMPTS[name]),
                sampling=SamplingParams(
                    max_tokens=ANSWER,
                    temperature=temperature,
                    seed=11,
                    ignore_eos=True,
                    logprobs=2,
                ),
                arrival_time=time.monotonic() + index,
                adapter=adapters.get(name),
            )
        )
    answers: Answers = {name: [] for name in names}
    while core.has_work:
        for delta in core.step().deltas:
            assert delta.error is None
            answers[delta.request_id] += delta.logprobs or []
        core.scheduler.check_integrity()
    core.runner.execute(StepPlan(step=0, dropped=names)).result()  # the next engine's rows
    assert all(len(answer) == ANSWER for answer in answers.values())
    return answers


@pytest.fixture(scope="module")
def alone(runner: Runner) -> Answers:
    answers: Answers = {}
    for name in PROMPTS:
        answers |= run(engine(runner, prefix_caching=False), [name])
    return answers


def test_batched(runner: Runner, alone: Answers) -> None:
    assert run(engine(runner, prefix_caching=False), list(PROMPTS)) == alone


def test_chunked_at_seven_tokens(runner: Runner, alone: Answers) -> None:
    core = engine(runner, prefix_caching=False, max_chunk_tokens=7)
    assert run(core, list(PROMPTS)) == alone


def test_with_a_budget_that_splits_chunks_unevenly(runner: Runner, alone: Answers) -> None:
    core = engine(runner, prefix_caching=False, max_num_batched_tokens=53)
    assert run(core, list(PROMPTS)) == alone


def test_served_from_the_prefix_cache(runner: Runner, alone: Answers) -> None:
    core = engine(runner)
    run(core, list(PROMPTS))
    hits = core.scheduler.counters.prefix_hits
    assert run(core, list(PROMPTS)) == alone
    found = core.scheduler.counters.prefix_hits - hits
    assert found == sum((n - 1) // 16 * 16 for n in LENGTHS)


def test_preempted_in_a_pool_too_small_for_all(runner: AdaptableRunner, alone: Answers) -> None:
    # One block more than the prompts need together: answers that grow have to fight for it.
    pool = SmallPool(runner, sum(-(-n // 16) for n in LENGTHS) + 1)
    core = engine(pool, prefix_caching=False)
    assert run(core, list(PROMPTS)) == alone
    assert core.scheduler.counters.preemptions > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculated(runner: Runner, alone: Answers, temperature: float) -> None:
    if temperature:
        alone = {}
        for name in PROMPTS:
            alone |= run(engine(runner, prefix_caching=False), [name], temperature=temperature)
    core = speculating(runner, alone)
    assert run(core, list(PROMPTS), temperature=temperature) == alone
    for name in PROMPTS:
        core = speculating(runner, alone)
        assert run(core, [name], temperature=temperature) == {name: alone[name]}
        assert core.scheduler._step < ANSWER  # some were right


def test_guessed_by_prompt_lookup(runner: Runner, alone: Answers) -> None:
    num_guessed = 0
    for settings in ({}, {"max_chunk_tokens": 7}, {"max_num_batched_tokens": 53}):
        core = engine(runner, speculative="ngram", **settings)
        assert core.scheduler.drafting is not None
        drafter = core.scheduler.drafting.drafter
        with patch.object(drafter, "propose", wraps=drafter.propose) as propose:
            for _ in range(2):
                assert run(core, list(PROMPTS)) == alone
        num_guessed += propose.call_count
    assert num_guessed > 0


def test_sampled_answers_are_as_independent_as_greedy_ones(runner: Runner) -> None:
    separate: Answers = {}
    for name in PROMPTS:
        separate |= run(engine(runner, prefix_caching=False), [name], temperature=1.0)
    core = engine(runner, max_chunk_tokens=7)
    assert run(core, list(PROMPTS), temperature=1.0) == separate
    core = speculating(runner, separate)
    assert run(core, list(PROMPTS), temperature=1.0) == separate
