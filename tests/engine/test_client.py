"""The engine behind its two clients: in this process, and in one of its own that may be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from itertools import pairwise

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.config import EngineConfig
from pellucid.engine.client import EngineClient, InProcessClient, ProcessClient
from pellucid.engine.link import EngineEnd, frame
from pellucid.errors import ConfigError, EngineDead
from pellucid.messages import Abort, AddRequest
from pellucid.runner.fake import expected_answer
from tests.engine.helpers import message, tokens

CONFIG = EngineConfig.of(runner="fake")


async def answer(client: EngineClient, *requests: AddRequest) -> dict[str, list[int]]:
    for request in requests:
        client.send(request)
    open_ids = {r.request_id for r in requests}
    deltas: dict[str, list] = {name: [] for name in open_ids}  # type: ignore[type-arg]
    async for output in client.outputs():
        for delta in output.deltas:
            deltas[delta.request_id].append(delta)
            if delta.finish_reason is not None:
                open_ids.discard(delta.request_id)
        if not open_ids:
            break
    return {name: tokens(d) for name, d in deltas.items()}


async def exhaust(client: EngineClient) -> None:
    async for _ in client.outputs():
        pass


@pytest.mark.parametrize("make", [InProcessClient.from_config, ProcessClient])
def test_both_clients_give_the_same_answers(
    make: Callable[[EngineConfig], EngineClient],
) -> None:
    async def run() -> None:
        client = make(CONFIG)
        info = await client.start()
        assert info.max_model_len == 8192
        assert client.alive
        got = await answer(client, *(message(f"r{i}", [i, 5, 6]) for i in range(5)))
        assert got == {f"r{i}": expected_answer([i, 5, 6], 8) for i in range(5)}
        client.send(message("gone", [1, 2], max_tokens=1000))
        client.send(Abort(request_ids=["gone"]))
        assert await answer(client, message("next", [9])) == {"next": expected_answer([9], 8)}
        await client.close()
        await client.close()
        assert not client.alive
        with pytest.raises(EngineDead):
            client.send(message("late", [1]))

    asyncio.run(run())


def test_a_killed_engine_ends_the_stream() -> None:
    async def run() -> None:
        client = ProcessClient(CONFIG)
        info = await client.start()
        client.send(message("a", [1], max_tokens=8000))
        os.kill(info.pid, signal.SIGKILL)
        with pytest.raises(EngineDead, match="exit status -9"):
            await asyncio.wait_for(exhaust(client), timeout=30)
        assert not client.alive
        await client.close()

    asyncio.run(run())


def test_a_setting_the_engine_refuses_is_told_as_such() -> None:
    async def run() -> None:
        client = ProcessClient(EngineConfig.of(runner="fake", policy="no.such:Policy"))
        with pytest.raises(ConfigError, match="policy"):
            await client.start()
        assert not client.alive

    asyncio.run(run())


def test_the_link_has_no_name_that_others_could_connect_to() -> None:
    async def run() -> None:
        client = ProcessClient(CONFIG)
        info = await client.start()
        engine = psutil.Process(info.pid)
        assert engine.net_connections("inet") == []
        (link,) = engine.net_connections("unix")
        assert not link.laddr
        assert not link.raddr
        await client.close()

    asyncio.run(run())


def test_garbage_on_the_link_never_reaches_the_scheduler() -> None:
    async def run() -> None:
        client = ProcessClient(CONFIG)
        await client.start()
        assert client._link is not None
        garbage = b"\x80\x04cposix\nsystem\n."  # what a pickle would run
        client._link._writer.write(len(garbage).to_bytes(4, "little") + garbage)
        with pytest.raises(EngineDead, match=r"DecodeError|ValidationError"):
            await asyncio.wait_for(exhaust(client), timeout=30)
        await client.close()

    asyncio.run(run())


@given(
    sizes=st.lists(st.sampled_from([0, 1, 30, 30_000]), max_size=6),
    cuts=st.lists(st.floats(0, 1), max_size=12),
)
def test_commands_arrive_whole_and_in_order_however_the_stream_is_cut(
    sizes: list[int], cuts: list[float]
) -> None:
    commands = [message(f"r{i}", list(range(size))) for i, size in enumerate(sizes)]
    stream = b"".join(map(frame, commands))
    places = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    ours, theirs = socket.socketpair()
    engine = EngineEnd(theirs.detach())
    received = []
    with ours:
        for begin, end in pairwise(places):
            writer = threading.Thread(target=ours.sendall, args=(stream[begin:end],))
            writer.start()  # more than the socket holds has to be read while it is written
            while writer.is_alive():
                received += engine.receive(patience=0.0)
            received += engine.receive(patience=0.0)
    assert received == commands
    with pytest.raises(ConnectionError):
        engine.receive(patience=None)


def test_an_engine_whose_front_end_died_ends_itself() -> None:
    async def run() -> int:
        client = ProcessClient(CONFIG)
        await client.start()
        process = client._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()  # what the kernel does when the front end is gone
        code = await asyncio.wait_for(process.wait(), timeout=30)
        await client.close()
        return code

    assert asyncio.run(run()) == 0
