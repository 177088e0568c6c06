"""The real model with itself as its draft model, which is always right if nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.kernels import native
from pellucid.messages import AddRequest, TokenLogprobs, pack_tokens
from pellucid.runner.base import Runner, StepPlan
from pellucid.runner.factory import create_runner
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.device import DEVICE
from tests.e2e.test_invariance import SmallPool
from tests.spec.fixed_times import cheap

pytestmark = pytest.mark.model

ANSWER = 24
LENGTHS = (3, 17, 129, 300)
PROMPTS = {f"p{n}": [(1_009 * n + 7_919 * k * k) % 40_000 + 100 for k in range(n)] for n in LENGTHS}
Answers = dict[str, list[TokenLogprobs]]


@pytest.fixture(scope="module", params=["int8", "bfloat16"])
def runner(smollm2_path: Path, request: pytest.FixtureRequest) -> Iterator[TorchRunner]:
    if native.obstacle(DEVICE) is not None:
        pytest.skip("the C++ part is not built, or there is a GPU")
    config = EngineConfig.of(
        model=str(smollm2_path),
        speculative="draft",
        draft_model=str(smollm2_path),
        kv_cache_dtype=request.param,
        num_kv_blocks=64,
        max_model_len=512,
        threads=2,
    )
    made = create_runner(config)
    assert isinstance(made, TorchRunner)
    made.drafter = cheap(made.drafter).model
    yield made
    made.close()


def engine(runner: Runner, speculative: str = "draft", **settings: Any) -> EngineCore:
    more = {"draft_model": "itself"} if speculative == "draft" else {}
    config = EngineConfig.of(speculative=speculative, **more, **settings)
    return EngineCore(runner, config.cache, config.scheduler)


def run(core: EngineCore, names: list[str], temperature: float) -> tuple[Answers, int, int]:
    """The answers; guesses, and how many were right."""
    for index, name in enumerate(names):
        params = SamplingParams(
            max_tokens=ANSWER, temperature=temperature, seed=11, ignore_eos=True, logprobs=1
        )
        arrival = time.monotonic() + index
        core.add(
            AddRequest(
                request_id=name,
                prompt=pack_tokens(PROMPTS[name]),
                sampling=params,
                arrival_time=arrival,
            )
        )
    answers: Answers = {name: [] for name in names}
    drafted = accepted = 0
    while core.has_work:
        output = core.step()
        drafted += sum(output.stats.drafted)
        accepted += sum(output.stats.accepted)
        for delta in output.deltas:
            answers[delta.request_id] += delta.logprobs or []
        core.scheduler.check_integrity()
    core.runner.execute(StepPlan(step=0, dropped=names)).result()  # the next engine's rows
    return answers, drafted, accepted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_stay_alone_batched_chunked_cached_and_preempted(
    runner: TorchRunner, temperature: float
) -> None:
    names = list(PROMPTS)
    alone: Answers = {}
    for name in names:
        alone |= run(engine(runner, "none", prefix_caching=False), [name], temperature)[0]
    for name in names:
        found, drafted, accepted = run(engine(runner), [name], temperature)
        assert found[name] == alone[name]
        assert drafted == accepted > ANSWER / 2
    for settings in (
        {"prefix_caching": False},
        {"max_chunk_tokens": 7},
        {"prefix_caching": True, "speculative_step_tokens": 64},
    ):
        core = engine(runner, **settings)
        for _ in range(2):
            found, drafted, accepted = run(core, names, temperature)
            assert found == alone
            assert drafted == accepted > ANSWER
    # One block more than the prompts need together: answers that grow have to fight for it.
    pool = SmallPool(runner, sum(-(-n // 16) for n in LENGTHS) + 1)
    core = engine(pool, prefix_caching=False)
    found, drafted, accepted = run(core, names, temperature)
    assert found == alone
    assert drafted == accepted > ANSWER
    assert core.scheduler.counters.preemptions > 0
