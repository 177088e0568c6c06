"""Offline use: many prompts in, as many answers out, in their order."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pellucid import LLM, AsyncLLM, EngineConfig, SamplingParams
from pellucid.errors import BadRequest, ConfigError, EngineDead, ModelError
from pellucid.frontend.outputs import RequestOutput
from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.runner.fake import FakeRunner, expected_answer
from tests.frontend.tiny import VOCAB_SIZE, tiny_text

VOCAB = range(3, 550)


@pytest.fixture(autouse=True)
def _speak_the_tiny_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_config(config: EngineConfig) -> FakeRunner:
        return FakeRunner(vocab_size=VOCAB_SIZE, answer_vocab=VOCAB)

    monkeypatch.setattr(FakeRunner, "from_config", from_config)


def make_llm(**settings: Any) -> LLM:
    return LLM(text=tiny_text(), runner="fake", **settings)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with make_llm(max_num_seqs=4) as llm:
        yield llm


def answers(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_outputs_come_in_the_order_of_prompts(llm: LLM) -> None:
    # Far more than runs at once, and of mixed lengths so that they end out of order.
    prompts = [[70 + i, 80] for i in range(60)]
    params = [SamplingParams(max_tokens=1 + (7 * i) % 23, seed=i) for i in range(60)]
    outputs = llm.generate(prompts, params, use_progress_bar=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert answers(outputs) == [
        expected_answer(prompt, 1 + (7 * i) % 23, seed=i, vocab=VOCAB)
        for i, prompt in enumerate(prompts)
    ]
    tokenizer = tiny_text().tokenizer
    for output in outputs:
        assert output.outputs[0].text == tokenizer.decode(output.outputs[0].token_ids)


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ("Once upon", ["Once upon"]),
        (["Once", "upon"], ["Once", "upon"]),
        ([70, 71], [None]),
        ([[70, 71], [72]], [None, None]),
        (["Once", [70]], ["Once", None]),
        ([], []),
    ],
)
def test_one_prompt_or_many_text_or_ids(llm: LLM, prompts: Any, texts: list[str | None]) -> None:
    outputs = llm.generate(prompts, use_progress_bar=False)
    assert [output.prompt for output in outputs] == texts
    assert all(len(output.outputs[0].token_ids) == 16 for output in outputs)


def test_n_answers_per_prompt_even_beyond_what_runs_at_once(llm: LLM) -> None:
    params = SamplingParams(n=10, max_tokens=3, seed=0)
    outputs = llm.generate([[70], [71]], params, use_progress_bar=False)
    assert [[a.token_ids for a in output.outputs] for output in outputs] == [
        [expected_answer([token], 3, seed=i, vocab=VOCAB) for i in range(10)] for token in (70, 71)
    ]


def test_a_bad_prompt_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(BadRequest) as caught:
        llm.generate([[70], [VOCAB_SIZE]], use_progress_bar=False)
    assert caught.value.param == "prompt"
    with pytest.raises(BadRequest) as caught:
        llm.generate([[70], [71]], [SamplingParams()], use_progress_bar=False)
    assert caught.value.param == "params"
    assert len(llm.generate([70], use_progress_bar=False)) == 1  # and the engine still serves


def test_chat_takes_one_conversation_or_many(llm: LLM) -> None:
    one = [{"role": "user", "content": "Hi"}]
    two = [*one, {"role": "assistant", "content": "Ho"}]
    decode = tiny_text().tokenizer.decode
    (output,) = llm.chat(one, use_progress_bar=False)
    assert decode(output.prompt_token_ids) == "user: Hi\nassistant:"
    outputs = llm.chat([one, two], use_progress_bar=False, add_generation_prompt=False)
    assert [decode(output.prompt_token_ids) for output in outputs] == [
        "user: Hi\n",
        "user: Hi\nassistant: Ho\n",
    ]


def test_it_works_inside_a_running_event_loop() -> None:
    async def cell() -> list[RequestOutput]:
        with make_llm() as llm:
            return llm.generate([70], use_progress_bar=False)

    assert len(asyncio.run(cell())) == 1


def test_an_interrupt_aborts_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []

    class Listener:
        def on_step(self, report: StepReport) -> None: ...

        def on_finish(self, report: RequestReport) -> None:
            reasons.append(report.finish_reason)

    # Steps that take time, asleep: the answers must not be finished before this thread gets a turn.
    slow = FakeRunner(vocab_size=VOCAB_SIZE, answer_vocab=VOCAB, step_seconds=0.002)
    monkeypatch.setattr(FakeRunner, "from_config", lambda config: slow)
    with make_llm() as llm:
        llm._engine.listeners.append(Listener())

        def interrupted(*_: Any) -> None:
            while llm._engine.num_unfinished < 5:
                time.sleep(0.001)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("concurrent.futures.Future.result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate([[70 + i] for i in range(5)], SamplingParams(max_tokens=8000))
        llm.generate([70], use_progress_bar=False)
    assert reasons == ["abort"] * 5 + ["length"]


def test_the_engine_may_have_a_process_of_its_own() -> None:
    with make_llm(in_process=False) as llm:
        assert llm.info.pid != os.getpid()
        (output,) = llm.generate("Once", use_progress_bar=False)
        assert output.outputs[0].finish_reason


def test_closing_stops_the_thread_and_refuses_more() -> None:
    before = threading.active_count()
    llm = make_llm()
    llm.close()
    llm.close()
    with pytest.raises(EngineDead):
        llm.generate([70], use_progress_bar=False)
    assert all(thread.name != "pellucid-llm" for thread in threading.enumerate())
    assert threading.active_count() <= before + 1  # a worker of the loop's pool may linger


def test_wrong_settings_and_models_are_refused_with_nothing_left_behind() -> None:
    with pytest.raises(ConfigError) as caught:
        LLM(max_num_seq=4)
    assert caught.value.param == "max_num_seq"
    with pytest.raises(ModelError):
        LLM("/no/such/model.gguf", offline=True)
    assert all(thread.name != "pellucid-llm" for thread in threading.enumerate())


def test_the_progress_bar_counts_answers_on_stderr(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate([[70], [71]], SamplingParams(n=2, max_tokens=3))
    seen = capsys.readouterr()
    assert "4/4" in seen.err
    assert "tok/s" in seen.err
    assert seen.out == ""


@pytest.mark.model
def test_the_real_model_answers_the_same_offline_and_streamed(smollm2_path: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    params = SamplingParams(temperature=0.0, max_tokens=12)
    settings: dict[str, Any] = {"max_model_len": 512, "num_kv_blocks": 64}
    with LLM(str(smollm2_path), **settings) as llm:
        (offline,) = llm.chat(messages, params, use_progress_bar=False)
    assert "Paris" in offline.outputs[0].text

    async def stream() -> tuple[str, list[int]]:
        config = EngineConfig.of(model=str(smollm2_path), **settings)
        text, token_ids = "", []
        async with AsyncLLM(config) as engine:
            async for delta in engine.generate(await engine.chat_prompt(messages), params):
                text += delta.text
                token_ids += delta.token_ids
        return text, token_ids

    assert asyncio.run(stream()) == (offline.outputs[0].text, offline.outputs[0].token_ids)
