"""Requests with a grammar wait for it, and never run without."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.grammar import source
from pellucid.grammar.compiler import Grammar, GrammarCompiler
from pellucid.messages import Abort, AddRequest, TokenDelta, Vocabulary, pack_tokens
from pellucid.runner.fake import FakeRunner
from pellucid.sampling_params import SamplingParams

EOS = 256
TOKENS = [bytes([i]) for i in range(256)] + [b"<eos>"]
VOCABULARY = Vocabulary(
    spelling=b"".join(TOKENS), lengths=pack_tokens([len(t) for t in TOKENS]), special_ids=[EOS]
)


@pytest.fixture(params=[False, True], ids=["plain", "ahead"])
def core(request: pytest.FixtureRequest) -> EngineCore:
    runner = FakeRunner(
        vocab_size=len(TOKENS), eos_token_ids=(EOS,), answer_vocab=range(256), num_blocks=64
    )
    settings = SchedulerSettings(async_scheduling=request.param)
    return create_core(runner, CacheSettings(), settings)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Compiling stands still until it is set."""
    opened, compile_now = threading.Event(), GrammarCompiler.compile

    def compile_later(self: GrammarCompiler, text: str) -> Grammar:
        opened.wait(10)
        return compile_now(self, text)

    monkeypatch.setattr(GrammarCompiler, "compile", compile_later)
    yield opened
    opened.set()


def add(core: EngineCore, name: str, grammar: str | None, **fields: float) -> None:
    params = SamplingParams(max_tokens=20, seed=1, grammar=grammar)
    core.handle(
        AddRequest(
            request_id=name,
            prompt=pack_tokens([1, 2, 3]),
            sampling=params,
            arrival_time=time.monotonic(),
            **fields,
        )
    )


def finish(core: EngineCore) -> dict[str, list[TokenDelta]]:
    found: dict[str, list[TokenDelta]] = {}
    end = time.monotonic() + 10
    while (core.has_work or core.is_compiling) and time.monotonic() < end:
        if core.has_work:
            for delta in core.step().deltas:
                found.setdefault(delta.request_id, []).append(delta)
    return found


def text_of(deltas: list[TokenDelta]) -> str:
    return b"".join(TOKENS[i] for d in deltas for i in d.token_ids if i != EOS).decode()


def test_a_request_waits_for_its_grammar_while_others_run(
    core: EngineCore, gate: threading.Event
) -> None:
    core.handle(VOCABULARY)
    add(core, "held", source.from_regex("[a-c]{5}"))
    assert not core.has_work  # nothing to do but wait
    assert core.is_compiling
    assert core.step().deltas == []
    add(core, "free", None)
    for _ in range(25):
        if core.has_work:
            assert {delta.request_id for delta in core.step().deltas} <= {"free"}
    assert core.scheduler.requests.keys() == {"held"}
    gate.set()
    answer = finish(core)["held"]
    assert re.fullmatch("[a-c]{5}", text_of(answer))
    assert answer[-1].finish_reason == "stop"


def test_what_is_aborted_or_too_late_does_not_wait(core: EngineCore, gate: threading.Event) -> None:
    core.handle(VOCABULARY)
    add(core, "aborted", source.from_regex("a+"))
    core.handle(Abort(request_ids=["aborted"]))
    add(core, "late", source.from_regex("b+"), deadline=time.monotonic() - 1)
    (delta,) = core.step().deltas
    assert (delta.request_id, delta.finish_reason) == ("late", "timeout")
    assert not core.has_work
    assert not core.is_compiling


@pytest.mark.parametrize("knows", [True, False])
def test_a_grammar_that_does_not_compile_ends_its_request(core: EngineCore, knows: bool) -> None:
    if knows:
        core.handle(VOCABULARY)
    add(core, "bad", "start: nothing" if knows else source.from_regex("a"))
    (delta,) = finish(core)["bad"]
    assert delta.finish_reason == "error"
    assert delta.token_ids == []
    assert core.scheduler.requests == {}
