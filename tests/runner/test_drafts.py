"""Checking drafts: the tokens, log probabilities and errors of requests of all kinds stay."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.errors import ConfigError
from pellucid.grammar import source
from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.native import obstacle
from pellucid.messages import TokenDelta, Vocabulary, pack_tokens
from pellucid.models.registry import build_model, random_weights
from pellucid.runner.llama_cpp.runner import check_settings
from pellucid.runner.torch_runner import TorchRunner
from tests.engine.helpers import message, tokens
from tests.engine.prophet import Prophet
from tests.engine.test_ahead import CPU, KINDS, MODEL, engine

PROMPTS = [[(11 * k * k + i) % 120 for k in range(2 + 5 * i)] for i in range(len(KINDS))]


def run(core: EngineCore) -> dict[str, list[TokenDelta]]:
    for i, fields in enumerate(KINDS):
        core.add(message(f"r{i}", PROMPTS[i], arrival=float(i), **{"max_tokens": 20, **fields}))
    found: dict[str, list[TokenDelta]] = {}
    while core.has_work:
        for delta in core.step().deltas:
            found.setdefault(delta.request_id, []).append(delta)
        core.scheduler.check_integrity()
    assert core.scheduler.kv.num_used == 0
    return found


def told(found: dict[str, list[TokenDelta]]) -> dict[str, Any]:
    return {
        name: (
            tokens(deltas),
            [entry for delta in deltas for entry in delta.logprobs or []],
            [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs],
            (deltas[-1].finish_reason, deltas[-1].stop_token_id, deltas[-1].error),
            deltas[-1].embedding,
        )
        for name, deltas in found.items()
    }


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("num_blocks", [24, 100])
def test_requests_of_all_kinds_end_as_without_drafts(kernels: str, num_blocks: int) -> None:
    if kernels == "native" and obstacle(CPU) is not None:
        pytest.skip("the C++ part is not built")
    expected = run(engine(kernels, ahead=False, num_blocks=num_blocks))
    prophet = Prophet([3, 0, 5, 1, 2], wrong=77)
    for i, prompt in enumerate(PROMPTS):
        prophet.texts[f"r{i}"] = prompt + tokens(expected[f"r{i}"])
    core = engine(kernels, ahead=False, num_blocks=num_blocks)
    core.scheduler.drafting = Drafting(prophet, most_per_request=4, step_tokens=40)
    assert told(run(core)) == told(expected)
    assert sum(accepted for _, accepted in prophet.learned) > 20
    assert any(accepted < proposed for proposed, accepted in prophet.learned)


def with_grammar(core: EngineCore) -> list[int]:
    """An answer that a regular expression allows, of a model whose tokens are letters."""
    letters = [b"<a>"] + [bytes([32 + i % 95]) for i in range(1, MODEL.vocab_size)]
    spelling = Vocabulary(
        spelling=b"".join(letters),
        lengths=pack_tokens([len(letter) for letter in letters]),
        special_ids=[0, 5],
    )
    core.handle(spelling)
    grammar = source.from_regex("([a-f]x|[g-z]{2}y)*")
    core.handle(message("r", [7, 8, 9], max_tokens=30, temperature=1.0, seed=3, grammar=grammar))
    found: list[TokenDelta] = []
    end = time.monotonic() + 30
    while (core.has_work or core.is_compiling) and time.monotonic() < end:
        if core.has_work:
            found += core.step().deltas
    assert found[-1].error is None
    return tokens(found)


def test_a_grammar_is_followed_through_drafts() -> None:
    """Wrong drafts leave no trace in its state; right ones move it on."""
    expected = with_grammar(engine("reference", ahead=False))
    assert len(expected) > 5
    prophet = Prophet([4, 2, 0, 3], wrong=66)
    prophet.texts["r"] = [7, 8, 9, *expected]
    core = engine("reference", ahead=False)
    core.scheduler.drafting = Drafting(prophet, most_per_request=4, step_tokens=4)
    assert with_grammar(core) == expected
    assert sum(accepted for _, accepted in prophet.learned) > 2


def test_runners_that_cannot_check_drafts_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--speculative"):
        check_settings(EngineConfig.of(runner="llama-cpp", speculative="ngram"))
    ops = select_ops("reference", CPU)
    model = build_model(MODEL, random_weights(MODEL), ops, torch.float32, CPU)
    monkeypatch.setattr(ops, "name", "triton")  # its sampler keeps the tokens on the device
    config = EngineConfig.of(device="cpu", speculative="ngram", num_kv_blocks=8)
    with pytest.raises(ConfigError, match="--speculative"):
        TorchRunner(config, model=model)
