"""Adapters on the front end's side: who waits for a load, and what a new engine is told."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pellucid.config import EngineConfig
from pellucid.errors import BadRequest, EngineDead, ModelError, ModelNotFound
from pellucid.frontend.adapters import MAX_ADAPTERS, Adapters
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.llm import LLM
from pellucid.messages import AdapterOutcome, Command, LoadAdapter, UnloadAdapter
from pellucid.sampling_params import SamplingParams
from tests.frontend.tiny import VOCAB_SIZE, ScriptedClient, fake_client, save_tokenizer, tiny_text
from tests.tiny_adapters import make_peft
from tests.tiny_models import make_hf


def on_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that needs an event loop."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    return run


def config(*lora: str) -> EngineConfig:
    return EngineConfig.of(runner="fake", lora=list(lora))


def outcome(number: int, error: str | None = None) -> AdapterOutcome:
    return AdapterOutcome(number, bytes([number % 256]) * 32, 4, 1000, error)


async def loads_in(commands: list[Command], count: int) -> list[LoadAdapter]:
    """The load commands among `commands`, once there are so many."""
    async with asyncio.timeout(10):
        while True:
            loads = [c for c in commands if isinstance(c, LoadAdapter)]
            if len(loads) >= count:
                return loads
            await asyncio.sleep(0)


async def loaded(adapters: Adapters, commands: list[Command], name: str) -> None:
    before = sum(isinstance(c, LoadAdapter) for c in commands)
    task = asyncio.create_task(adapters.load(name, f"/{name}"))
    *_, load = await loads_in(commands, before + 1)
    adapters.take([outcome(load.adapter)])
    await task


@on_loop
async def test_a_number_is_never_used_twice() -> None:
    commands: list[Command] = []
    adapters = Adapters(commands.append)
    await loaded(adapters, commands, "a")
    first = adapters.find("a")
    assert (first.rank, first.digest) == (4, "00" * 32)
    adapters.check(first.number)
    adapters.unload("a")
    assert commands[-1] == UnloadAdapter(adapter=first.number)
    with pytest.raises(ModelNotFound):
        adapters.find("a")
    await loaded(adapters, commands, "a")
    assert adapters.find("a").number != first.number
    with pytest.raises(ModelNotFound):  # a request that was prepared before
        adapters.check(first.number)


@on_loop
async def test_names_are_taken_from_the_first_try_on() -> None:
    commands: list[Command] = []
    adapters = Adapters(commands.append)
    task = asyncio.create_task(adapters.load("a", "/a"))
    (load,) = await loads_in(commands, 1)
    with pytest.raises(BadRequest, match="loaded already"):
        await adapters.load("a", "/other")
    adapters.take([outcome(load.adapter, "it is no good")])
    with pytest.raises(ModelError, match="'a': it is no good"):
        await task
    for index in range(MAX_ADAPTERS):
        await loaded(adapters, commands, f"n{index}")
    with pytest.raises(BadRequest, match=f"at most {MAX_ADAPTERS}"):
        await adapters.load("one more", "/x")


@on_loop
async def test_who_waits_is_told_when_the_engine_dies_and_forgotten_when_it_leaves() -> None:
    commands: list[Command] = []
    adapters = Adapters(commands.append)
    task = asyncio.create_task(adapters.load("a", "/a"))
    await loads_in(commands, 1)
    adapters.engine_died(EngineDead("it is dead"))
    with pytest.raises(EngineDead, match="it is dead"):
        await task
    task = asyncio.create_task(adapters.load("a", "/a"))
    *_, load = await loads_in(commands, 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert commands[-1] == UnloadAdapter(adapter=load.adapter)
    adapters.take([outcome(load.adapter)])
    assert not list(adapters)


@on_loop
async def test_a_new_engine_gets_the_adapters_before_the_requests_that_have_them() -> None:
    llm = AsyncLLM(config(), client := ScriptedClient(), text=tiny_text(), retries=1)
    await llm.start()
    try:
        for name in ("a", "b"):
            await loaded(llm.adapters, client.commands, name)
        generation = await llm.submit("x", SamplingParams(), adapter=llm.adapters.find("b"))
        client.die()
        async with asyncio.timeout(10):
            await llm.died.wait()
        second = ScriptedClient()
        task = asyncio.create_task(llm.restart(second))
        loads = await loads_in(second.commands, 2)
        assert [(load.name, load.path) for load in loads] == [("a", "/a"), ("b", "/b")]
        assert not second.added
        numbers = [load.adapter for load in loads]
        llm.adapters.take([outcome(numbers[0], "it is gone"), outcome(numbers[1])])
        await task
        assert [request.adapter for request in second.added] == [numbers[1]]
        assert [adapter.name for adapter in llm.adapters] == ["b"]  # the file of the other is gone
        await generation.aclose()
    finally:
        await llm.close()


@on_loop
async def test_a_request_whose_adapter_left_meanwhile_is_refused() -> None:
    llm = AsyncLLM(config(), client := ScriptedClient(), text=tiny_text())
    async with llm:
        await loaded(llm.adapters, client.commands, "a")
        request = await llm.prepare("x", SamplingParams(), adapter=llm.adapters.find("a"))
        llm.adapters.unload("a")
        with pytest.raises(ModelNotFound):
            llm.open(request)
        assert not client.added


@on_loop
async def test_a_runner_without_adapters_is_named_at_the_start() -> None:
    settings = config("a=/nowhere")
    llm = AsyncLLM(settings, fake_client(settings), text=tiny_text())
    with pytest.raises(ModelError, match="'a': this runner does not support LoRA"):
        await llm.start()
    assert not llm.alive


def test_offline(tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "base", vocab_size=VOCAB_SIZE)
    save_tokenizer(tmp_path / "base")
    make_peft(tmp_path / "base", tmp_path / "a")
    settings = {"lora": [f"a={tmp_path / 'a'}"], "num_kv_blocks": 64, "threads": 1}
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(str(tmp_path / "base"), **settings) as llm:
        plain, adapted = (
            llm.generate("Once", params, adapter=name, use_progress_bar=False)[0].outputs[0]
            for name in (None, "a")
        )
        assert plain.token_ids != adapted.token_ids
        assert llm.embed("Once") != llm.embed("Once", adapter="a")
        with pytest.raises(ModelNotFound):
            llm.generate("Once", params, adapter="b")
