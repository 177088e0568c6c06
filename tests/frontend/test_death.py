"""What becomes of readers and requests when their engine dies or is closed."""

from __future__ import annotations

import asyncio

import pytest

from pellucid.engine.client import ProcessClient
from pellucid.errors import EngineDead, ModelError
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.messages import EngineInfo, TokenDelta
from pellucid.sampling_params import SamplingParams
from tests.frontend.running import CONFIG, collect, run, settle, with_script
from tests.frontend.tiny import ScriptedClient, tiny_text


def test_death_of_the_engine_ends_every_reader_and_refuses_new_ones() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        readers = [
            asyncio.ensure_future(collect(llm, [70], SamplingParams(), request_id=f"r{i}"))
            for i in range(5)
        ]
        late = await llm.submit([70], SamplingParams(), request_id="late")
        await settle()
        client.feed(TokenDelta(request_id="late", token_ids=llm.encode("a")))
        await settle()
        client.die()
        results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 30)
        assert [type(r) for r in results] == [EngineDead] * 5
        assert (await anext(late)).text == "a"  # what was produced is not lost
        with pytest.raises(EngineDead):
            await anext(late)
        assert not llm.alive
        with pytest.raises(EngineDead):
            await llm.submit([70], SamplingParams())
        with pytest.raises(EngineDead):
            await llm.chat_prompt([])

    with_script(body)


def test_death_noticed_while_sending_ends_every_reader() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        reader = asyncio.ensure_future(collect(llm, [70], SamplingParams()))
        await settle()
        client._dead = True
        assert not llm.alive
        with pytest.raises(EngineDead):
            await llm.submit([70], SamplingParams())
        with pytest.raises(EngineDead):
            await reader

    with_script(body)


def test_a_killed_engine_process_is_noticed_in_two_seconds() -> None:
    async def body() -> None:
        client = ProcessClient(CONFIG)
        async with AsyncLLM(CONFIG, client, text=tiny_text()) as llm:
            generation = await llm.submit([150], SamplingParams(max_tokens=8000))
            await anext(generation)
            client._process.kill()  # type: ignore[union-attr]

            async def drain() -> None:
                async for _ in generation:
                    pass

            with pytest.raises(EngineDead):
                await asyncio.wait_for(drain(), 2)
            assert not llm.alive

    run(body())


def test_closing_ends_open_readers() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        reader = asyncio.ensure_future(collect(llm, [70], SamplingParams()))
        await settle()
        await llm.close()
        await llm.close()
        with pytest.raises(EngineDead, match="closed"):
            await reader
        assert client.closed

    with_script(body)


def test_a_failed_start_leaves_nothing_running() -> None:
    class Failing(ScriptedClient):
        async def start(self) -> EngineInfo:
            raise ModelError("no such model")

    async def body() -> None:
        client = Failing()
        llm = AsyncLLM(CONFIG, client, text=tiny_text())
        with pytest.raises(ModelError):
            await llm.start()
        assert client.closed
        assert not llm.alive
        with pytest.raises(EngineDead):
            await llm.submit([70], SamplingParams())

    run(body())


def test_whom_an_engine_took_along_leaves_no_trace() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        vector = asyncio.ensure_future(llm.embed([70, 71]))
        unread = await llm.submit([70], SamplingParams(n=2), request_id="r")
        await settle()
        client.die()
        with pytest.raises(EngineDead):
            await vector
        assert llm.num_unfinished == 0
        await llm.restart(ScriptedClient())
        await llm.submit([70], SamplingParams(), request_id="r")
        with pytest.raises(EngineDead):
            await unread.result()
        assert llm.num_unfinished == 1

    with_script(body)


def test_an_answer_that_was_whole_before_the_death_is_read_to_its_end() -> None:
    async def body(llm: AsyncLLM, client: ScriptedClient) -> None:
        generation = await llm.submit([70], SamplingParams(), request_id="r")
        client.feed(TokenDelta(request_id="r", token_ids=[70], finish_reason="length"))
        client.die()
        await settle()
        assert not llm.alive
        assert [delta.finish_reason async for delta in generation] == ["length"]

    with_script(body)


def test_who_was_refused_by_a_dying_engine_is_not_handed_to_the_next() -> None:
    async def body() -> None:
        first, second = ScriptedClient(), ScriptedClient()
        async with AsyncLLM(CONFIG, first, text=tiny_text(), retries=1) as llm:
            first._dead = True
            with pytest.raises(EngineDead):
                await llm.submit([70], SamplingParams())
            await llm.restart(second)
            assert (second.added, llm.num_unfinished) == ([], 0)

    run(body())


def test_of_what_one_token_was_read_no_other_engine_begins_again() -> None:
    async def body() -> None:
        first, second = ScriptedClient(), ScriptedClient()
        async with AsyncLLM(CONFIG, first, text=tiny_text(), retries=1) as llm:
            begun = await llm.submit([70], SamplingParams(n=2))
            first.feed(TokenDelta(first.added[0].request_id, llm.encode("a")))
            first.die()
            await settle()
            await llm.restart(second)
            assert second.added == []
            assert (await anext(begun)).text == "a"
            with pytest.raises(EngineDead):
                await anext(begun)

    run(body())


def test_an_engine_that_dies_at_once_leaves_its_requests_to_the_one_after_it() -> None:
    async def body() -> None:
        first, second, third = (ScriptedClient() for _ in range(3))
        async with AsyncLLM(CONFIG, first, text=tiny_text(), retries=2) as llm:
            waiting = [await llm.submit([70], SamplingParams()) for _ in range(3)]
            first.die()
            await settle()
            second._dead = True
            await llm.restart(second)
            assert not llm.alive
            await llm.restart(third)
            for message in third.added:
                third.feed(TokenDelta(message.request_id, [70], finish_reason="length"))
            ends = [(await each.result()).outputs[0].finish_reason for each in waiting]
            assert ends == ["length"] * 3

    run(body())
