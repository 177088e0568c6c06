"""A runner with a draft model: answers stay, to the bit, however well it guesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError, ModelError
from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.native import obstacle
from pellucid.messages import TokenDelta
from pellucid.models.base import Model
from pellucid.models.registry import build_model, random_weights
from pellucid.runner.factory import create_runner
from pellucid.runner.fake import FakeRunner
from pellucid.runner.llama_cpp.runner import check_settings
from pellucid.runner.torch_runner import TorchRunner
from tests.engine.helpers import message, tokens
from tests.engine.test_ahead import CPU, MODEL
from tests.runner.test_drafts import PROMPTS, run, told, with_grammar
from tests.spec.fixed_times import cheap
from tests.tiny_models import make_hf

KERNELS = ["reference", "native"]


class Blurred:
    """The model's weights with noise: mostly of the same opinion. Implements `WeightSource`."""

    def __init__(self, noise: float) -> None:
        self._exact, self._other, self._noise = (
            random_weights(MODEL),
            random_weights(MODEL, seed=1),
            noise,
        )
        self.names, self.integers = self._exact.names, self._exact.integers

    def get(self, name: str, dtype: torch.dtype) -> Tensor:
        exact, other = (source.get(name, torch.float32) for source in (self._exact, self._other))
        return ((1 - self._noise) * exact + self._noise * other).to(dtype)


def model(kernels: str, weights: Any) -> Model:
    return build_model(MODEL, weights, select_ops(kernels, CPU), torch.float32, CPU)


def engine(kernels: str, draft: Any = None, *, lookup: bool = False, **settings: Any) -> EngineCore:
    """With a draft model of these weights, if there are any, alone or beside prompt lookup."""
    if kernels == "native" and obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    named = {"speculative": "draft", "draft_model": "in memory"}
    if draft is None:
        named = {"speculative": "none"}
    config = EngineConfig.of(
        **{
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "block_size": 4,
            "num_kv_blocks": 100,
            "max_num_seqs": 5,
            "max_num_batched_tokens": 40,
            "speculative_step_tokens": 40,
            **named,
            **settings,
        }
    )
    small = None if draft is None else model(kernels, draft)
    runner = TorchRunner(config, model=model(kernels, random_weights(MODEL)), draft=small)
    if small is not None:
        both = cheap(runner.drafter)
        runner.drafter = both if lookup else both.model
    return create_core(runner, config.cache, config.scheduler)


@pytest.mark.parametrize(
    ("kernels", "settings", "guesses"),
    [
        ("native", {"speculative": "auto"}, "ngram"),
        ("native", {"speculative": "auto", "async_scheduling": True}, "none"),
        ("native", {"speculative": "none"}, "none"),
        ("reference", {"speculative": "auto"}, "none"),
        ("reference", {"speculative": "ngram"}, "ngram"),
    ],
)
def test_who_guesses_by_itself(kernels: str, settings: dict[str, Any], guesses: str) -> None:
    core = engine(kernels, **settings)
    assert core.info.speculative == guesses
    core.add(message("a", [7] * 40, max_tokens=30, temperature=0.0, ignore_eos=True))
    outputs = [core.step() for _ in range(60) if core.has_work]
    has_guessed = any(output.stats.drafted for output in outputs)
    assert (core.scheduler.drafting is not None) == (guesses == "ngram")
    assert not has_guessed or guesses == "ngram"


def counted(core: EngineCore) -> tuple[dict[str, Any], int, int]:
    """What came of a request of each kind; guesses, and how many were right."""
    drafted, accepted = [], []
    stats = core._stats

    def count(*arguments: Any) -> Any:
        found = stats(*arguments)
        drafted.extend(found.drafted)
        accepted.extend(found.accepted)
        return found

    core._stats = count  # type: ignore[method-assign]
    return told(run(core)), sum(drafted), sum(accepted)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_kv_blocks": 100},
        {"num_kv_blocks": 24},  # some are preempted
        {"max_chunk_tokens": 3},
        {"kv_cache_dtype": "int8"},
        {"kv_cache_dtype": "bfloat16", "prefix_caching": False},
    ],
    ids=lambda settings: next(iter(settings)) + str(next(iter(settings.values()))),
)
@pytest.mark.parametrize("lookup", [False, True], ids=["alone", "with lookup"])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0], ids=["itself", "alike", "another"])
def test_requests_of_all_kinds_end_as_without_it(
    kernels: str, settings: dict[str, Any], lookup: bool, noise: float
) -> None:
    expected, drafted, _ = counted(engine(kernels, **settings))
    assert drafted == 0
    core = engine(kernels, Blurred(noise), lookup=lookup, **settings)
    found, drafted, accepted = counted(core)
    assert found == expected
    if noise == 0.0:
        assert accepted > (30 if lookup else 40)  # a lookup may be wrong
    elif noise == 1.0:
        assert 0 <= accepted < drafted / 2
    else:
        assert 10 < accepted < drafted


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_model_that_drafts_for_itself_is_always_right(kernels: str) -> None:
    """Greedy or not: guesses are drawn with the answer's own random numbers."""
    core = engine(kernels, random_weights(MODEL))
    for i, fields in enumerate(({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9})):
        core.add(message(f"r{i}", PROMPTS[5 + i], max_tokens=60, seed=i, ignore_eos=True, **fields))
    stats = []
    while core.has_work:
        stats.append(core.step().stats)
    drafted, accepted = (
        sum(map(sum, column))
        for column in zip(*((s.drafted, s.accepted) for s in stats), strict=True)
    )
    assert drafted == accepted > 90
    assert len(stats) < 25


def test_the_last_guess_is_caught_up_with_after_all_were_right() -> None:
    """Its K/V are nobody's input until then; were they missing, later guesses would be wrong."""
    core = engine("reference", random_weights(MODEL), num_speculative_tokens=1)
    core.add(message("a", PROMPTS[4], max_tokens=40, temperature=0.0, ignore_eos=True))
    stats = []
    while core.has_work:
        stats.append(core.step().stats)
    assert sum(map(sum, (s.drafted for s in stats))) == sum(map(sum, (s.accepted for s in stats)))


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_prefix_found_in_the_cache_is_one_for_the_draft_model_too(kernels: str) -> None:
    core = engine(kernels, random_weights(MODEL))
    answers = []
    for name in ("a", "b"):
        core.add(message(name, PROMPTS[9], max_tokens=30, temperature=0.0, ignore_eos=True))
        stats, found = [], []
        while core.has_work:
            output = core.step()
            stats.append(output.stats)
            found += output.deltas
        answers.append(tokens(found))
        assert sum(map(sum, (s.drafted for s in stats))) == sum(
            map(sum, (s.accepted for s in stats))
        )
    assert answers[0] == answers[1]
    assert core.scheduler.counters.prefix_hits > 0


def test_a_grammar_is_followed() -> None:
    expected = with_grammar(engine("reference"))
    assert with_grammar(engine("reference", Blurred(0.05))) == expected


def test_memory_is_that_of_both() -> None:
    plain, drafted = engine("reference").info, engine("reference", random_weights(MODEL)).info
    assert drafted.kv_block_bytes == 2 * plain.kv_block_bytes
    assert drafted.draft_weight_bytes == drafted.weight_bytes == plain.weight_bytes
    assert plain.draft_weight_bytes == 0 == plain.draft_cost
    assert drafted.draft_cost > 0
    runner = TorchRunner(
        EngineConfig.of(
            device="cpu",
            kernels="reference",
            kv_cache_memory_mib=1,
            speculative="draft",
            draft_model="in memory",
        ),
        model=model("reference", random_weights(MODEL)),
        draft=model("reference", random_weights(MODEL)),
    )
    capacity = runner.kv_capacity()
    pools = [*runner._kv, *runner._draft_kv]
    held = sum(layer.k.nbytes + layer.v.nbytes for layer in pools)
    assert held == capacity.num_blocks * capacity.block_bytes <= 1 << 20
    runner.close()


def test_a_draft_model_that_computes_nothing_finite_is_told() -> None:
    class Broken(Blurred):
        def get(self, name: str, dtype: torch.dtype) -> Tensor:
            return torch.full_like(super().get(name, dtype), torch.nan)

    with pytest.raises(ModelError, match="draft model"):
        engine("reference", Broken(0.0))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"speculative": "draft"}, "--speculative draft needs a --draft-model"),
        ({"draft_model": "x"}, "--draft-model is for --speculative draft"),
        ({"draft_model": "x", "speculative": "ngram"}, "--draft-model is for --speculative draft"),
    ],
)
def test_the_two_settings_go_together(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        EngineConfig.of(**settings).draft()
    assert caught.value.param == "draft_model"


def test_runners_without_a_draft_model_say_so() -> None:
    config = EngineConfig.of(speculative="draft", draft_model="x", runner="llama-cpp")
    with pytest.raises(ConfigError, match="--speculative is not for --runner llama-cpp"):
        check_settings(config)
    with pytest.raises(ConfigError, match="--speculative draft is for --runner torch"):
        create_core(FakeRunner(), config.cache, config.scheduler)


def test_it_starts_in_little_room() -> None:
    for settings in ({"num_kv_blocks": 1}, {"max_model_len": 3}):
        core = engine("reference", random_weights(MODEL), **settings)
        core.add(message("a", [7], max_tokens=2, ignore_eos=True))
        assert len([token for deltas in run_on(core) for token in deltas.token_ids]) == 2


def run_on(core: EngineCore) -> list[TokenDelta]:
    deltas: list[TokenDelta] = []
    while core.has_work:
        deltas += core.step().deltas
    return deltas


@pytest.mark.parametrize("kernels", KERNELS)
def test_both_are_loaded_from_their_files(kernels: str, tmp_path: Path) -> None:
    if kernels == "native" and obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    make_hf("llama", tmp_path / "large")
    make_hf("qwen2", tmp_path / "small")
    settings = {
        "model": str(tmp_path / "large"),
        "dtype": "float32",
        "kernels": kernels,
        "device": "cpu",
        "num_kv_blocks": 32,
        "threads": 1,
    }
    answers = []
    for more in ({}, {"speculative": "draft", "draft_model": str(tmp_path / "small")}):
        config = EngineConfig.of(**settings, **more)
        core = create_core(create_runner(config), config.cache, config.scheduler)
        core.add(message("a", [5, 6, 7], max_tokens=30, temperature=0.0, ignore_eos=True))
        found = []
        while core.has_work:
            found += core.step().deltas
        answers.append(tokens(found))
        assert core.info.draft_model == ("small" if more else "")
    assert answers[0] == answers[1]
    assert core.info.draft_weight_bytes > 0
