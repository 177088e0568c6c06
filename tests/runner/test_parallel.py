"""Several ranks, each a real process: the answers of one, whatever the company."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.messages import AddRequest, TokenDelta, pack_tokens
from pellucid.runner.base import Runner, StepPlan
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams
from tests.device import DEVICE, INVARIANT_KERNELS, float_weights_too
from tests.e2e.test_invariance import SmallPool
from tests.runner.driver import Driver, Job
from tests.runner.test_torch_runner import make_jobs
from tests.tiny_models import make_hf

SIZES = (2, 4)  # of its two key/value heads each rank has one, or two ranks have the same
BLOCKS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    make_hf("llama", path, vocab_size=1000, max_position_embeddings=512)
    return path


def config_of(folder: Path, size: int, **settings: Any) -> EngineConfig:
    defaults = {"device": DEVICE.type, "kernels": INVARIANT_KERNELS[0], "dtype": "float32"}
    defaults |= {"threads": 1}
    defaults |= {"num_kv_blocks": BLOCKS, "max_num_seqs": 16, "tensor_parallel_size": size}
    return EngineConfig.of(model=str(folder), **(defaults | settings))


@pytest.fixture(scope="module", params=SIZES)
def runner(folder: Path, request: pytest.FixtureRequest) -> Iterator[Runner]:
    if DEVICE.type == "cuda" and torch.cuda.device_count() < request.param:
        pytest.skip("there are fewer GPUs")
    with float_weights_too():
        made = create_runner(config_of(folder, request.param))
    yield made
    made.close()


@pytest.fixture(scope="module")
def single(folder: Path) -> Runner:
    with float_weights_too():
        return create_runner(config_of(folder, 1))


def run(runner: Runner, jobs: dict[str, Job], seed: int = 0, **how: int) -> dict[str, Job]:
    Driver(runner, seed).run(jobs, **how)
    runner.execute(StepPlan(step=0, dropped=list(jobs))).result()  # the next driver's rows
    return jobs


@pytest.fixture(scope="module")
def alone(runner: Runner) -> dict[str, Job]:
    jobs = make_jobs()
    for name, job in jobs.items():
        run(runner, {name: job})
    return jobs


def assert_same_bits(found: dict[str, Job], expected: dict[str, Job]) -> None:
    for name, job in found.items():
        other = expected[name]
        assert job.tokens == other.tokens, name
        assert job.logprobs == other.logprobs, name
        assert job.prompt_logprobs == other.prompt_logprobs, name


@pytest.mark.parametrize(
    "how", [{}, {"chunk": 7}, {"preempt_at": 5}, {"chunk": 33, "preempt_at": 11}], ids=str
)
def test_batched_chunked_and_preempted_equal_alone_bit_for_bit(
    runner: Runner, alone: dict[str, Job], how: dict[str, int]
) -> None:
    assert_same_bits(run(runner, make_jobs(), seed=len(str(how)), **how), alone)


def answers(runner: Runner, **settings: Any) -> tuple[Any, Counter[str]]:
    """Logprobs of what an engine says to prompts that recur, and what it counted."""
    config = EngineConfig.of(max_num_seqs=16, **settings)
    core = create_core(runner, config.cache, config.scheduler)
    found: dict[str, list[Any]] = {}
    counted: Counter[str] = Counter()
    # The second round finds the first one's blocks.
    for turn in ("first", "second"):
        for length in (3, 16, 17, 70, 130):
            prompt = pack_tokens([(5 * k * k + length) % 7 + 3 for k in range(length)])
            sampling = SamplingParams(
                max_tokens=12, ignore_eos=True, logprobs=1, seed=3, temperature=length % 2
            )
            name = f"{turn} {length}"
            core.add(AddRequest(request_id=name, prompt=prompt, sampling=sampling, arrival_time=0))
            found[name] = []
        while core.has_work:
            output = core.step()
            counted["drafted"] += sum(output.stats.drafted)
            for delta in output.deltas:
                assert delta.error is None
                found[delta.request_id] += delta.logprobs or []
        core.scheduler.check_integrity()
    core.runner.execute(StepPlan(step=0, dropped=list(found))).result()
    assert {len(answer) for answer in found.values()} == {12}
    counted["hits"] = core.scheduler.counters.prefix_hits
    counted["preemptions"] = core.scheduler.counters.preemptions
    return found, counted


def test_an_engine_with_prefix_cache_preemption_and_guesses(runner: Runner) -> None:
    plain, _ = answers(runner, prefix_caching=False)
    cached, counted = answers(runner)
    assert cached == plain
    assert counted["hits"] > 0
    pool: Any = SmallPool(runner, 19)
    preempted, counted = answers(pool, prefix_caching=False)
    assert preempted == plain
    assert counted["preemptions"] > 0
    guessed, counted = answers(runner, speculative="ngram", prompt_lookup_min=1)
    assert guessed == plain
    assert counted["drafted"] > 0
    ahead, _ = answers(runner, async_scheduling=True)
    assert ahead == plain


def test_the_answers_are_those_of_one_rank(
    runner: Runner, single: Runner, alone: dict[str, Job]
) -> None:
    expected = run(single, make_jobs())
    for name, job in alone.items():
        assert job.tokens == expected[name].tokens, name
        for found, other in zip(job.logprobs, expected[name].logprobs, strict=True):
            assert found.logprob == pytest.approx(other.logprob, abs=2e-4)
            assert found.top_ids == other.top_ids
            assert found.top_logprobs == pytest.approx(other.top_logprobs, abs=2e-4)


def test_vectors_are_those_of_one_rank(runner: Runner, single: Runner) -> None:
    def vector(of: Runner) -> torch.Tensor:
        config = EngineConfig.of()
        core = create_core(of, config.cache, config.scheduler)
        prompt = pack_tokens(list(range(3, 40)))
        sampling = SamplingParams(max_tokens=1)
        request = AddRequest(
            request_id="v", prompt=prompt, sampling=sampling, arrival_time=0.0, pooling="mean"
        )
        core.add(request)
        deltas: list[TokenDelta] = []
        while core.has_work:
            deltas += core.step().deltas
        core.runner.execute(StepPlan(step=0, dropped=["v"])).result()
        assert deltas[-1].embedding is not None
        return torch.frombuffer(bytearray(deltas[-1].embedding), dtype=torch.float32)

    torch.testing.assert_close(vector(runner), vector(single), rtol=1e-4, atol=1e-4)


def test_info_tells_of_all_ranks(runner: Runner, single: Runner) -> None:
    info, one = runner.info(), single.info()
    size = info.tensor_parallel_size
    assert size in SIZES
    assert one.tensor_parallel_size == 1
    assert (info.num_parameters, info.weight_bytes) == (one.num_parameters, one.weight_bytes)
    # Each rank has at least one of the two heads.
    assert info.kv_block_bytes == one.kv_block_bytes * max(2, size) // 2
    assert info.num_kv_blocks == BLOCKS
