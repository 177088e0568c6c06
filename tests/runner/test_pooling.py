"""Vectors of the torch runner: the model's own states, and the same in any company."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.kernels import native
from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.reference import ReferenceOps
from pellucid.messages import AddRequest, Pooling, TokenLogprobs, pack_tokens
from pellucid.models.base import Model
from pellucid.runner.base import StepPlan
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.models.stepping import random_tokens
from tests.models.test_native import load
from tests.runner import test_torch_runner
from tests.runner.test_torch_runner import CPU, prompt
from tests.tiny_models import ARCHITECTURES, make_hf

POOLINGS: tuple[Pooling, ...] = ("last", "mean")
# On both sides of the tiles of 16 rows and of the partitions of attention.
LENGTHS = (1, 15, 16, 17, 70, 300)
EMBEDDED: dict[str, Pooling] = {f"{p} {n}": p for p in POOLINGS for n in LENGTHS}
GENERATED = ("generate 3", "generate 33", "generate 120")
ANSWER = 20

Outcome = dict[str, bytes | list[TokenLogprobs]]
make_runner = partial(test_torch_runner.make_runner, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_hf("llama", path, vocab_size=1000, max_position_embeddings=512)
    return path


@pytest.fixture(scope="module", params=["reference", "native", "native int8"])
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    kernels, _, scheme = request.param.partition(" ")
    if kernels == "native" and native.obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    return load(folder, select_ops(kernels, CPU), scheme or "none")


@pytest.fixture(scope="module")
def runner(model) -> TorchRunner:
    return make_runner(model)


def request(name: str, at: int) -> AddRequest:
    return AddRequest(
        request_id=name,
        prompt=pack_tokens(prompt(int(name.split()[1]))),
        sampling=SamplingParams(max_tokens=ANSWER, seed=5, ignore_eos=True, logprobs=2),
        arrival_time=float(at),
        pooling=EMBEDDED.get(name),
    )


def engine(runner: TorchRunner, **settings: Any) -> EngineCore:
    config = EngineConfig.of(**settings)
    return EngineCore(runner, config.cache, config.scheduler)


def run(core: EngineCore, names: list[str]) -> Outcome:
    """The vector of each request that pools, the scored tokens of each that generates."""
    for at, name in enumerate(names):
        core.add(request(name, at))
    outcome: Outcome = {name: [] for name in core.scheduler.requests if name not in EMBEDDED}
    while core.has_work:
        for delta in core.step().deltas:
            assert delta.error is None
            if delta.request_id in EMBEDDED:
                assert (delta.finish_reason, delta.token_ids) == ("stop", [])
                assert delta.request_id not in outcome, "one delta and no more"
                outcome[delta.request_id] = delta.embedding
            else:
                assert delta.embedding is None
                outcome[delta.request_id] += delta.logprobs
        core.scheduler.check_integrity()
    core.runner.execute(StepPlan(step=0, dropped=names)).result()  # the next engine's rows
    assert not core.runner._steps.pools, "nothing of those that are gone is kept"
    return outcome


@pytest.fixture(scope="module")
def alone(runner: TorchRunner) -> Outcome:
    outcome: Outcome = {}
    for name in (*GENERATED, *EMBEDDED):  # answers first: no vector was ever asked for
        outcome |= run(engine(runner, prefix_caching=False), [name])
    return outcome


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_chunk_tokens": 7},
        {"max_num_batched_tokens": 53},
        {"max_chunk_tokens": 64, "max_num_seqs": 5},
    ],
    ids=str,
)
def test_batched_and_chunked_among_answers_equals_alone(runner, alone, settings):
    names = [*GENERATED, *EMBEDDED]
    for order in (names, names[::-1]):
        assert run(engine(runner, prefix_caching=False, **settings), order) == alone


def test_a_cached_prefix_serves_last_and_not_mean(runner, alone):
    core = engine(runner)
    assert run(core, list(EMBEDDED)) == {name: alone[name] for name in EMBEDDED}
    for pooling in POOLINGS:
        before = core.scheduler.counters.prefix_hits
        again = [name for name in EMBEDDED if EMBEDDED[name] == pooling]
        assert run(core, again) == {name: alone[name] for name in again}
        found = core.scheduler.counters.prefix_hits - before
        assert found == (sum((n - 1) // 16 * 16 for n in LENGTHS) if pooling == "last" else 0)


def test_what_an_embedding_left_in_the_cache_serves_answers(runner, alone):
    core = engine(runner)
    run(core, ["mean 300"])
    answers = run(engine(runner, prefix_caching=False), ["generate 300"])
    assert run(core, ["generate 300"]) == answers
    assert core.scheduler.counters.prefix_hits == 288


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("caching", [False, True])
def test_preempted_equals_alone(model, alone, pooling, caching):
    # Chunks of 2 keep the vector in the making until an answer needs one of its blocks.
    names = [*GENERATED, f"{pooling} 70"]
    core = engine(
        make_runner(
            model,
            num_kv_blocks=sum(-(-int(name.split()[1]) // 16) for name in names),
            max_model_len=200,
        ),
        max_chunk_tokens=2,
        prefix_caching=caching,
    )
    assert run(core, names) == {name: alone[name] for name in names}
    assert core.scheduler.counters.preemptions > 0


def test_the_first_vector_leaves_what_others_hold_alone(model):
    """Native kernels record a second program then, and show it tokens in the pool's blocks."""
    expected = run(engine(make_runner(model)), ["generate 33"])
    core = engine(make_runner(model))
    core.add(request("generate 33", 0))
    (first,) = core.step().deltas
    core.add(request("last 17", 1))
    rest = run(core, [])
    assert first.logprobs + rest["generate 33"] == expected["generate 33"]


def test_states_that_are_not_finite_end_the_request(folder):
    runner = make_runner(load(folder, ReferenceOps()))
    runner._executor._model.final_norm.weight[3] = torch.nan
    core = engine(runner)
    core.add(request("mean 17", 0))
    (delta,) = core.step().deltas
    assert (delta.finish_reason, delta.embedding) == ("error", None)
    assert "not finite" in delta.error


# ---- against transformers


def embed(runner: TorchRunner, tokens: list[int], pooling: Pooling) -> np.ndarray:
    core = engine(runner, max_chunk_tokens=16)
    message = AddRequest(
        request_id=pooling,
        prompt=pack_tokens(tokens),
        sampling=SamplingParams(),
        arrival_time=0.0,
        pooling=pooling,
    )
    core.add(message)
    deltas = []
    while core.has_work:
        deltas += core.step().deltas
    runner.execute(StepPlan(step=0, dropped=[pooling])).result()
    return np.frombuffer(deltas[-1].embedding, "<f4")


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_vectors_equal_those_of_transformers(arch: str, kernels: str, tmp_path: Path) -> None:
    if kernels == "native" and native.obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    reference = make_hf(arch, tmp_path)
    tokens = random_tokens(45, 96)
    with torch.inference_mode():
        states = reference.base_model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    runner = TorchRunner(
        EngineConfig.of(
            model=str(tmp_path),
            device="cpu",
            dtype="float32",
            threads=2,
            kernels=kernels,
            num_kv_blocks=16,
        )
    )
    assert runner.info().hidden_size == states.shape[1]
    for pooling, expected in (("last", states[-1]), ("mean", states.mean(0))):
        vector = embed(runner, tokens, pooling)
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-4 * abs(expected).max())
    runner.close()


@pytest.mark.model
def test_native_vectors_of_a_quantised_model_point_where_the_references_do(
    smollm2_path: Path,
) -> None:
    if native.obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    tokens = [(7_919 * k * k) % 40_000 + 100 for k in range(60)]
    vectors = []
    for kernels in ("native", "reference"):
        runner = TorchRunner(
            EngineConfig.of(
                model=str(smollm2_path),
                device="cpu",
                dtype="float32",
                kernels=kernels,
                num_kv_blocks=8,
            )
        )
        vectors.append([embed(runner, tokens, pooling) for pooling in POOLINGS])
        runner.close()
    for found, expected in zip(*vectors, strict=True):
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.999
