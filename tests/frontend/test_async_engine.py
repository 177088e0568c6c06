"""Many readers, one engine: streams, cancellation, overload and deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pellucid.config import EngineConfig
from pellucid.errors import BadRequest, Overloaded
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.generation import merge
from pellucid.frontend.outputs import Delta, Logprob
from pellucid.frontend.text import ModelText
from pellucid.messages import RequestTimes, TokenDelta
from pellucid.runner.fake import expected_answer
from pellucid.sampling_params import SamplingParams
from tests.frontend.running import CONFIG, collect, run, settle, with_fake, with_script
from tests.frontend.tiny import ScriptedClient, tiny_text

VOCAB = range(3, 550)


def joined(deltas: list[Delta], index: int = 0) -> tuple[str, list[int]]:
    mine = [d for d in deltas if d.index == index]
    return "".join(d.text for d in mine), [t for d in mine for t in d.token_ids]


# ---- what comes out


def test_a_stream_is_the_full_decode_of_the_engines_answer() -> None:
    async def body(llm: AsyncLLM) -> None:
        prompt = llm.encode("Once upon a time")
        params = SamplingParams(max_tokens=40, seed=3)
        deltas = await collect(llm, "Once upon a time", params)
        text, token_ids = joined(deltas)
        assert token_ids == expected_answer(prompt, 40, seed=3, vocab=VOCAB)
        assert text == llm.decode(token_ids)
        assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert deltas[-1].times is not None
        assert llm.num_unfinished == 0

    with_fake(body)


def test_n_answers_are_interleaved_and_sample_with_their_own_seeds() -> None:
    async def body(llm: AsyncLLM) -> None:
        prompt = [70, 71, 72]
        deltas = await collect(llm, prompt, SamplingParams(n=3, max_tokens=20, seed=5))
        for index in range(3):
            text, token_ids = joined(deltas, index)
            assert token_ids == expected_answer(prompt, 20, seed=5 + index, vocab=VOCAB)
            assert text == llm.decode(token_ids)
        order = [d.index for d in deltas]
        assert order != sorted(order)
        assert sum(d.finish_reason is not None for d in deltas) == 3

    with_fake(body)


def test_result_collects_what_the_deltas_say() -> None:
    async def body(llm: AsyncLLM) -> None:
        params = SamplingParams(n=2, max_tokens=12, seed=1, logprobs=1, prompt_logprobs=0)
        generation = await llm.submit("Once upon a time", params, request_id="mine")
        output = await generation.result()
        prompt = llm.encode("Once upon a time")
        assert (output.request_id, output.prompt) == ("mine", "Once upon a time")
        assert output.prompt_token_ids == prompt
        assert output.prompt_logprobs is not None
        assert [entry and entry.token_id for entry in output.prompt_logprobs] == [None, *prompt[1:]]
        for index, answer in enumerate(output.outputs):
            assert answer.index == index
            assert answer.token_ids == expected_answer(prompt, 12, seed=1 + index, vocab=VOCAB)
            assert answer.text == llm.decode(answer.token_ids)
            assert answer.logprobs is not None
            assert [entry.token_id for entry in answer.logprobs] == answer.token_ids

    with_fake(body)


def test_a_result_says_what_was_found_in_the_cache() -> None:
    async def body(llm: AsyncLLM) -> None:
        size = llm.info.block_size
        prompt = list(range(70, 71 + 2 * size))
        found = [
            (await (await llm.submit(prompt, SamplingParams(max_tokens=1))).result())
            for _ in range(2)
        ]
        assert [output.num_cached_tokens for output in found] == [0, 2 * size]

    with_fake(body)


def test_merging_keeps_what_each_delta_says() -> None:
    times = RequestTimes(arrival=1.0, finished=2.0)
    entry = Logprob(7, -0.5, "a", b"a")
    delta = Delta(1, "a", [7], logprobs=[entry], prompt_logprobs=[None], num_cached_tokens=3)
    end: dict[str, Any] = {
        "finish_reason": "error",
        "stop_reason": 8,
        "num_cached_tokens": 3,
        "times": times,
        "error": "broken",
        "embedding": b"vector",
    }
    merge(delta, Delta(1, "b", [8], logprobs=[entry], **end))
    assert delta == Delta(1, "ab", [7, 8], logprobs=[entry] * 2, prompt_logprobs=[None], **end)


def test_a_stop_string_across_steps_ends_the_request_in_the_engine() -> None:
    async def body(llm: AsyncLLM) -> None:
        prompt = [70, 71, 72]
        params = SamplingParams(max_tokens=200, seed=3)
        (whole,) = (await (await llm.submit(prompt, params)).result()).outputs
        at = len(whole.text) // 2
        stop = whole.text[at : at + 6]
        cut = whole.text.find(stop)
        params = SamplingParams(max_tokens=200, seed=3, stop=[stop])
        deltas = await collect(llm, prompt, params)
        assert joined(deltas)[0] == whole.text[:cut]
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
        core = llm._client._core  # type: ignore[attr-defined]
        assert not core.scheduler.requests

    with_fake(body, answer_vocab=range(300, 550))


def test_200_readers_each_get_their_own_answer() -> None:
    async def body(llm: AsyncLLM) -> None:
        async def one(i: int) -> None:
            prompt = [70 + i % 50, 71 + i // 50, 80]
            params = SamplingParams(max_tokens=5 + i % 20, seed=i)
            _, token_ids = joined(await collect(llm, prompt, params))
            assert token_ids == expected_answer(prompt, 5 + i % 20, seed=i, vocab=VOCAB)

        await asyncio.gather(*(one(i) for i in range(200)))
        assert llm.num_unfinished == 0

    with_fake(body)


def test_chat_prompts_follow_the_template() -> None:
    async def body(llm: AsyncLLM) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        ids = await llm.chat_prompt(messages)
        assert llm.decode(ids) == "user: Hi\nassistant:"
        ids = await llm.chat_prompt(messages, add_generation_prompt=False)
        assert llm.decode(ids) == "user: Hi\n"
        ids = await llm.chat_prompt(messages * 100)  # long enough for a thread
        assert llm.decode(ids) == "user: Hi\n" * 100 + "assistant:"

    with_fake(body)


def test_a_model_without_a_template_says_so() -> None:
    async def body() -> None:
        text = tiny_text()
        bare = ModelText(text.name, text.tokenizer, ChatTemplate(None, {}))
        async with AsyncLLM(CONFIG, ScriptedClient(), text=bare) as llm:
            with pytest.raises(BadRequest, match="no chat template"):
                await llm.chat_prompt([{"role": "user", "content": "Hi"}])

    run(body())


# ---- readers that go


async def _close_iterator(llm: AsyncLLM, client: ScriptedClient) -> None:
    stream = llm.generate([70], SamplingParams(), request_id="r")
    task = asyncio.ensure_future(anext(stream))
    await settle()
    client.feed(TokenDelta(request_id="r", token_ids=[70]))
    await task
    await stream.aclose()


async def _cancel_reader(llm: AsyncLLM, client: ScriptedClient) -> None:
    task = asyncio.ensure_future(collect(llm, [70], SamplingParams(), request_id="r"))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _close_generation(llm: AsyncLLM, client: ScriptedClient) -> None:
    generation = await llm.submit([70], SamplingParams(), request_id="r")
    await generation.aclose()
    await generation.aclose()
    assert [delta async for delta in generation] == []


async def _abort_by_id(llm: AsyncLLM, client: ScriptedClient) -> None:
    generation = await llm.submit([70], SamplingParams(), request_id="r")
    assert llm.abort("r")
    assert not llm.abort("r")
    assert [delta.finish_reason async for delta in generation] == ["abort"]
    await generation.aclose()


@pytest.mark.parametrize(
    "leave", [_close_iterator, _cancel_reader, _close_generation, _abort_by_id]
)
def test_whoever_leaves_aborts_exactly_once(
    leave: Callable[[AsyncLLM, ScriptedClient], Coroutine[Any, Any, None]],
) -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        await leave(llm, client)
        assert client.aborted == [["r"]]
        assert llm.num_unfinished == 0
        client.feed(TokenDelta(request_id="r", token_ids=[71]))  # the engine was a step ahead
        await settle()
        assert llm.alive

    with_script(body)


def test_leaving_aborts_only_the_answers_that_are_unfinished() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        generation = await llm.submit([70], SamplingParams(n=3), request_id="r")
        ids = [message.request_id for message in client.added]
        client.feed(TokenDelta(request_id=ids[1], token_ids=[70], finish_reason="length"))
        await settle()
        await generation.aclose()
        assert client.aborted == [[ids[0], ids[2]]]

    with_script(body)


def test_a_finished_request_is_not_aborted() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        generation = await llm.submit([70], SamplingParams(), request_id="r")
        client.feed(TokenDelta(request_id="r", token_ids=[70], finish_reason="length"))
        await settle()
        assert not llm.abort("r")
        await generation.aclose()
        assert client.aborted == []

    with_script(body)


def test_a_slow_reader_gets_one_merged_delta() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        generation = await llm.submit([70], SamplingParams(max_tokens=200), request_id="r")
        ids = llm.encode("a little engine that could be seen through")
        first = TokenDelta(request_id="r", token_ids=ids[:1], num_cached_tokens=1)
        client.feed(first)
        for token in ids[1:]:
            client.feed(TokenDelta(request_id="r", token_ids=[token]))
        client.feed(TokenDelta(request_id="r", token_ids=[], finish_reason="timeout"))
        await settle()
        (delta,) = [d async for d in generation]
        assert delta.text == "a little engine that could be seen through"
        assert delta.token_ids == ids
        assert (delta.finish_reason, delta.num_cached_tokens) == ("timeout", 1)
        assert first.token_ids == ids[:1]  # the engine's own list was left alone

    with_script(body)


def test_what_waits_longest_is_read_first() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        generation = await llm.submit([70], SamplingParams(n=3))
        for index in (1, 2, 0):
            client.feed(TokenDelta(client.added[index].request_id, [70]))
        await settle()
        assert [(await anext(generation)).index for _ in range(3)] == [1, 2, 0]

    with_script(body)


# ---- limits


def test_beyond_the_queue_requests_are_refused_until_there_is_room() -> None:
    config = EngineConfig.of(runner="fake", max_num_seqs=2, max_waiting=1)

    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        two = await llm.submit([70], SamplingParams(n=2))
        with pytest.raises(Overloaded) as caught:
            await llm.submit([70], SamplingParams(n=2))
        assert caught.value.retry_after >= 1.0
        await llm.submit([70], SamplingParams())
        assert llm.num_unfinished == 3
        with pytest.raises(Overloaded):
            await llm.submit([70], SamplingParams())
        await two.aclose()
        await llm.submit([70], SamplingParams(n=2))
        assert llm.num_unfinished == 3
        with pytest.raises(BadRequest) as refused:
            await llm.submit([70], SamplingParams(n=4))
        assert refused.value.param == "n"

    with_script(body, config)


def test_prompts_being_tokenised_count_against_the_queue() -> None:
    config = EngineConfig.of(runner="fake", max_num_seqs=1, max_waiting=1)

    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        gate = asyncio.Event()
        prepare = llm._inputs.prepare

        async def slow(*args: Any, **kwargs: Any) -> Any:
            await gate.wait()
            return await prepare(*args, **kwargs)

        llm._inputs.prepare = slow  # type: ignore[method-assign]
        tasks = [asyncio.ensure_future(llm.submit([70], SamplingParams())) for _ in range(5)]
        await settle()
        assert [task.done() for task in tasks] == [False, False, True, True, True]
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, Overloaded) for r in results] == [False, False, True, True, True]
        assert len(client.added) == 2

    with_script(body, config)


def test_a_refused_request_leaves_no_trace() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        with pytest.raises(BadRequest):
            await llm.submit([], SamplingParams())
        await llm.submit([70], SamplingParams(), request_id="r")
        with pytest.raises(BadRequest) as caught:
            await llm.submit([70], SamplingParams(), request_id="r")
        assert caught.value.param == "request_id"
        assert llm.num_unfinished == 1
        assert len(client.added) == 1

    with_script(body)


def test_a_deadline_ends_the_answer_with_what_was_produced() -> None:
    async def body(llm: AsyncLLM) -> None:
        params = SamplingParams(max_tokens=400, seed=0)
        deltas = await collect(llm, [70], params, timeout=1)
        text, token_ids = joined(deltas)
        assert deltas[-1].finish_reason == "timeout"
        assert 0 < len(token_ids) < 400
        assert token_ids == expected_answer([70], len(token_ids), vocab=VOCAB)
        assert text == llm.decode(token_ids)

    with_fake(body, step_seconds=0.01)
