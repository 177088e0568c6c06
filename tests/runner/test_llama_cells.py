"""The engine over a stand-in for llama.cpp: every answer comes from the right cells."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError
from pellucid.load.files import ModelFiles
from pellucid.messages import AddRequest, pack_tokens
from pellucid.models.config import ModelConfig
from pellucid.runner.llama_cpp import runner as llama_runner
from pellucid.runner.llama_cpp.runner import LlamaCppRunner
from pellucid.sampling_params import SamplingParams
from tests.runner.fake_llama import VOCAB, FakeLlama, next_token

SHAPE = ModelConfig(
    architecture="llama",
    vocab_size=VOCAB,
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=8,
    max_position=256,
    eos_token_ids=(1,),
)


@pytest.fixture
def make(monkeypatch):
    def make_engine(llama: FakeLlama, **settings: Any) -> EngineCore:
        monkeypatch.setitem(sys.modules, "llama_cpp", llama)
        files = ModelFiles("gguf", Path("none.gguf"), "none")
        monkeypatch.setattr(llama_runner, "_find", lambda config: (files, SHAPE))
        defaults = {"block_size": 4, "num_kv_blocks": 64, "max_num_seqs": 4, "threads": 1}
        config = EngineConfig.of(runner="llama-cpp", **(defaults | settings))
        return EngineCore(LlamaCppRunner(config), config.cache, config.scheduler)

    return make_engine


def expected(prompt: list[int], count: int) -> list[int]:
    known = list(prompt)
    for _ in range(count):
        known.append(next_token(known))
    return known[len(prompt) :]


def add(core: EngineCore, name: str, prompt: list[int], count: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    core.add(AddRequest(request_id=name, prompt=pack_tokens(prompt), sampling=params,
                        arrival_time=0.0))  # fmt: skip


def run(core: EngineCore, abort_after: int | None = None) -> dict[str, list[int]]:
    """Answers to all requests but one, which is aborted after so many steps."""
    answers: dict[str, list[int]] = {}
    step = 0
    while core.has_work:
        for delta in core.step().deltas:
            assert delta.error is None
            answers.setdefault(delta.request_id, []).extend(delta.token_ids)
        core.scheduler.check_integrity()
        step += 1
        if step == abort_after and core.scheduler.requests:
            aborted = next(iter(core.scheduler.requests))
            core.abort([aborted])
            answers.pop(aborted, None)
    return answers


@pytest.mark.parametrize(
    ("num_seqs", "num_blocks"),
    [(256, 64), (12, 64), (8, 64), (256, 24), (9, 24)],
    ids=["roomy", "few parked", "none parked", "few blocks", "few of both"],
)
@pytest.mark.parametrize("seed", range(4))
def test_any_company_any_history(make, num_seqs, num_blocks, seed):
    """Shared prefixes, chunks, preemptions, aborts, reassigned blocks, lost sequences."""
    rng = random.Random(seed)
    llama = FakeLlama(num_seqs)
    core = make(llama, num_kv_blocks=num_blocks, max_num_batched_tokens=24, max_chunk_tokens=9)
    stems = [[rng.randrange(VOCAB) for _ in range(24)] for _ in range(3)]
    for wave in range(12):
        jobs = {}
        for k in range(rng.randrange(1, 7)):
            prompt = rng.choice(stems)[: rng.randrange(1, 25)] + [rng.randrange(VOCAB)] * (k % 3)
            jobs[f"{wave}-{k}"] = (prompt, rng.randrange(1, 30))
            add(core, f"{wave}-{k}", *jobs[f"{wave}-{k}"])
        answers = run(core, abort_after=wave % 4)
        assert len(answers) >= len(jobs) - 1
        assert answers == {name: expected(*jobs[name]) for name in answers}
    assert core.scheduler.counters.prefix_hits > 0
    assert llama.largest_pool <= num_blocks * 4
    if num_blocks == 24:
        assert core.scheduler.counters.preemptions > 0


def test_a_prefix_is_computed_once_and_forgotten_with_its_sequence(make):
    core = make(FakeLlama(num_seqs=9), max_num_seqs=4)  # one parked sequence
    first, second, third = (list(range(k, k + 20)) for k in (10, 40, 70))
    for prompt, num_found in [(first, 0), (first, 16), (second, 0), (third, 0), (first, 0)]:
        before = core.scheduler.counters.prefix_hits
        add(core, "a", prompt, 3)
        assert run(core) == {"a": expected(prompt, 3)}
        assert core.scheduler.counters.prefix_hits - before == num_found


def test_without_a_prefix_cache_nothing_stays(make):
    llama = FakeLlama()
    core = make(llama, prefix_caching=False)
    for name in ("a", "b"):
        add(core, name, list(range(20)), 3)
        run(core)
    assert len(llama.cells) == 22, "the first request's cells were let go in the second's step"
    core.runner.close()
    assert llama.is_closed


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"max_num_seqs": 129}, "max_num_seqs"),
        ({"device": "cuda"}, "device"),
        ({"kernels": "native"}, "kernels"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"quantization": "int8"}, "quantization"),
        ({"max_model_len": 257}, "max_model_len"),
    ],
)
def test_settings_that_do_not_fit_are_named(make, settings, param):
    with pytest.raises(ConfigError) as caught:
        make(FakeLlama(), **settings)
    assert caught.value.param == param


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"pellucid\[llamacpp\]"):
        LlamaCppRunner(EngineConfig.of(runner="llama-cpp"))
