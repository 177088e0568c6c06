"""The loop that plans ahead tells of each request what the plain one does."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine import events
from pellucid.engine.ahead import AheadCore, create_core
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError
from pellucid.grammar.source import from_regex
from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.native import obstacle
from pellucid.messages import Observe, TokenDelta, Vocabulary, pack_tokens
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model, random_weights
from pellucid.runner import torch_runner
from pellucid.runner.base import PendingStep, StepPlan, StepResult
from pellucid.runner.device import Fetched
from pellucid.runner.fake import FakeRunner, expected_answer
from pellucid.runner.llama_cpp.runner import check_settings
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sample.backends import TorchSampler
from tests.engine.helpers import core, drain, is_between_steps, message, tokens
from tests.engine.replay import Replay
from tests.runner.tape import TapeRecorder

CPU = torch.device("cpu")
MODEL = ModelConfig(
    architecture="llama",
    vocab_size=120,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=32,
    max_position=256,
    eos_token_ids=(0, 5),
)
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 1},
    {"temperature": 1.0, "seed": 7, "stop_token_ids": list(range(20, 60))},
    {"temperature": 1.0, "seed": 3, "top_p": 0.7, "repetition_penalty": 1.5},
    {"temperature": 0.0, "frequency_penalty": 1.0, "logprobs": 0},
    {"temperature": 0.0, "bad_words_token_ids": [[i, j] for i in range(120) for j in (3, 4, 9)]},
    {"temperature": 0.0, "min_tokens": 6, "logit_bias": {5: 50.0}},
    {"temperature": 0.0},
    {"temperature": 0.0, "allowed_token_ids": [7], "bad_words_token_ids": [[7]]},  # fails
    {"pooling": "last"},
    {"pooling": "mean"},
    {"temperature": 1.0, "seed": 5, "presence_penalty": 0.5, "grammar": from_regex("[a-f]{4,9}")},
]
VOCABULARY = Vocabulary(
    spelling=bytes(range(120)), lengths=pack_tokens([1] * 120), special_ids=[0, 5]
)


def engine(
    kernels: str, *, ahead: bool, num_blocks: int = 24, device: torch.device = CPU
) -> EngineCore:
    config = EngineConfig.of(
        device=str(device),
        dtype="float32",
        threads=1,
        block_size=4,
        num_kv_blocks=num_blocks,
        max_num_seqs=5,
        max_num_batched_tokens=40,
        async_scheduling=ahead,
        speculative="none",  # or the plain loop would tell of several tokens at once
        cuda_graphs=True,
    )
    ops = select_ops(kernels, device)
    model = build_model(MODEL, random_weights(MODEL), ops, torch.float32, device)
    return create_core(TorchRunner(config, model=model), config.cache, config.scheduler)


def told(engine: EngineCore) -> dict[str, Any]:
    """What came of a request of each kind, some of which are preempted on the way."""
    engine.handle(VOCABULARY)
    for i, fields in sorted(enumerate(KINDS), key=lambda kind: "grammar" not in kind[1]):
        prompt = [(11 * k * k + i) % 120 for k in range(2 + 5 * i)]
        engine.add(message(f"r{i}", prompt, arrival=float(i), **{"max_tokens": 20, **fields}))
        while not engine.has_work:  # the grammar is compiled, or steps would differ by chance
            time.sleep(0.01)
    preemptions = 0
    found: dict[str, list[TokenDelta]] = {}
    while engine.has_work:
        output = engine.step()
        engine.scheduler.check_integrity()
        preemptions += output.stats.num_preemptions
        for delta in output.deltas:
            found.setdefault(delta.request_id, []).append(delta)
    assert preemptions > 0
    assert engine.scheduler.kv.num_used == 0
    return {
        name: (
            tokens(deltas),
            [delta.logprobs for delta in deltas],
            [delta.prompt_logprobs for delta in deltas],
            (deltas[-1].finish_reason, deltas[-1].stop_token_id, deltas[-1].error),
            deltas[-1].embedding,
        )
        for name, deltas in found.items()
    }


class OnDevice(TorchSampler):
    """Leaves its tokens as tensors, as a GPU's sampler may."""

    def sample(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, failed = (torch.as_tensor(part) for part in super().sample(*arguments))
        return token_ids, failed


@pytest.mark.parametrize("kernels", ["reference", "native", "device", "graphs"])
def test_requests_of_all_kinds_end_as_in_the_plain_loop(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "native" and obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    base = "native" if kernels == "native" else "reference"
    expected = told(engine(base, ahead=False))
    if kernels in ("device", "graphs"):
        monkeypatch.setattr("pellucid.runner.torch_executor.TorchSampler", OnDevice)
    if kernels == "graphs":
        recorder = TapeRecorder()
        monkeypatch.setattr(torch_runner.device_api, "graph_recorder", lambda _: recorder)
    assert told(engine(base, ahead=True)) == expected
    ends = {name: end for name, (*_, end, _) in expected.items()}
    assert ends["r1"][0] == ends["r5"][0] == "stop"
    assert ends["r0"][0] == "length"
    assert ends["r7"][0] == "error"
    assert re.fullmatch("[a-f]{4,9}\x05", bytes(expected["r10"][0]).decode())


def test_no_kind_of_request_waits_for_tokens_before_the_next_step_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But those that want log probabilities of their prompt."""
    monkeypatch.setattr("pellucid.runner.torch_executor.TorchSampler", OnDevice)
    monkeypatch.setitem(KINDS[0], "prompt_logprobs", None)
    ahead, launching = engine("reference", ahead=True), []
    execute, wait = ahead.runner.execute, Fetched.wait

    def launch(plan: StepPlan) -> PendingStep:
        launching.append(plan)
        pending = execute(plan)
        launching.clear()
        return pending

    def fetch(fetched: Fetched) -> list[np.ndarray]:
        assert not launching
        return wait(fetched)

    monkeypatch.setattr(ahead.runner, "execute", launch)
    monkeypatch.setattr(Fetched, "wait", fetch)
    told(ahead)


class Slow(FakeRunner):
    """Notes in which order steps are launched and asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls: list[str] = []

    def execute(self, plan: StepPlan) -> PendingStep:  # type: ignore[override]
        self.calls.append(f"launch {plan.step}")
        return Noted(self, plan.step, super().execute(plan))


class Noted:
    def __init__(self, runner: Slow, step: int, inner: PendingStep) -> None:
        self.runner, self.step, self.inner = runner, step, inner

    def result(self) -> StepResult:
        self.runner.calls.append(f"result {self.step}")
        return self.inner.result()


def test_a_step_is_launched_before_the_one_before_it_is_waited_for() -> None:
    config = EngineConfig()
    runner = Slow()
    engine = AheadCore(runner, config.cache, config.scheduler)
    engine.add(message("a", [1, 2], max_tokens=3))
    drain(engine)
    assert runner.calls == ["launch 0", "launch 1", "result 0", "launch 2", "result 1", "result 2"]


def test_who_ends_by_length_gets_no_share_too_many() -> None:
    plain, ahead = core(), core(async_scheduling=True)
    for each in (plain, ahead):
        each.add(message("a", [1, 2, 3], max_tokens=5))
        drain(each)
    assert ahead.scheduler._step == plain.scheduler._step


def test_a_stop_token_drops_the_share_that_was_planned_behind_it() -> None:
    answer = expected_answer([1, 2, 3], 8)
    engine = core(async_scheduling=True)
    engine.add(message("a", [1, 2, 3], max_tokens=8, stop_token_ids=[answer[3]]))
    engine.add(message("b", [4], max_tokens=8))
    found = drain(engine)
    assert tokens(found["a"]) == answer[:4]
    assert (found["a"][-1].finish_reason, found["a"][-1].stop_token_id) == ("stop", answer[3])
    assert tokens(found["b"]) == expected_answer([4], 8)
    assert engine.scheduler.counters.generated_tokens == 12


def test_a_plan_that_only_preempts_is_told() -> None:
    engine = core(num_blocks=4, prefix_caching=False, async_scheduling=True)
    engine.handle(Observe(num_listeners=1, detail=True))
    engine.add(message("ends", [1] * 7, max_tokens=2))
    engine.add(message("grows", [2] * 7, max_tokens=5, arrival=1.0))
    replay, told = Replay(), 0
    while engine.has_work:
        step = events.decode(engine.step().events)
        replay.apply(step)
        told += len(step.preempted)
    assert told == engine.scheduler.counters.preemptions == 1


def test_an_id_may_come_again_while_its_last_share_is_under_way() -> None:
    engine = core(async_scheduling=True)
    engine.add(message("a", [1, 2, 3], max_tokens=8))
    engine.step()
    assert not is_between_steps(engine)
    engine.abort(["a"])
    engine.add(message("a", [9], max_tokens=4))
    assert tokens(drain(engine)["a"]) == expected_answer([9], 4)


def test_everyone_gone_leaves_nothing_under_way() -> None:
    engine = core(async_scheduling=True)
    engine.add(message("a", [1, 2, 3]))
    engine.step()
    engine.abort(["a"])
    assert drain(engine) == {}
    assert is_between_steps(engine)
    assert np.all(engine.scheduler.kv.num_used == 0)


def test_llama_cpp_does_not_plan_ahead() -> None:
    config = EngineConfig.of(runner="llama-cpp", async_scheduling=True)
    with pytest.raises(ConfigError) as caught:
        check_settings(config)
    assert caught.value.param == "async_scheduling"
