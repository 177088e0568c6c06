"""Adapters in the engine: from the command to the last request, and in the names of blocks."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest

from pellucid.config import EngineConfig
from pellucid.engine.adapters import Adapter
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.request import Request
from pellucid.errors import ModelError
from pellucid.messages import AddRequest, LoadAdapter, UnloadAdapter, pack_tokens
from pellucid.runner.base import AdapterInfo
from pellucid.runner.fake import FakeRunner
from pellucid.sampling_params import SamplingParams

NOT_LOADED = "the adapter is not loaded"


class Adaptable(FakeRunner):
    """Holds adapters, and does nothing with them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.held: dict[int, str] = {}

    def load_adapter(self, adapter: int, path: str) -> AdapterInfo:
        if path == "bad":
            raise ModelError("it is bad")
        self.held[adapter] = path
        return AdapterInfo(hashlib.sha256(path.encode()).digest(), 4, 100)

    def unload_adapter(self, adapter: int) -> None:
        del self.held[adapter]


def request(name: str, adapter: int | None = None, **fields: Any) -> AddRequest:
    return AddRequest(
        request_id=name,
        prompt=pack_tokens(list(range(40))),
        sampling=SamplingParams(max_tokens=4, seed=0, ignore_eos=True),
        arrival_time=0.0,
        adapter=adapter,
        **fields,
    )


def load(number: int, path: str = "p") -> LoadAdapter:
    return LoadAdapter(adapter=number, name=f"n{number}", path=path)


@pytest.fixture(params=[False, True], ids=["plain", "ahead"])
def core(request: pytest.FixtureRequest) -> EngineCore:
    config = EngineConfig.of(async_scheduling=request.param)
    return create_core(Adaptable(), config.cache, config.scheduler)


def finish(core: EngineCore) -> dict[str, str]:
    """Run until all is done; why each request ended."""
    ends = {}
    while core.has_work:
        for delta in core.step().deltas:
            if delta.finish_reason is not None:
                ends[delta.request_id] = delta.error or delta.finish_reason
    return ends


def held(core: EngineCore) -> dict[int, str]:
    assert isinstance(core.runner, Adaptable)
    return core.runner.held


def test_the_next_step_tells_what_came_of_a_load(core: EngineCore) -> None:
    core.handle(load(3, "p"))
    core.handle(load(4, "bad"))
    assert core.has_work
    good, bad = core.step().adapters
    assert (good.adapter, good.digest, good.error) == (3, hashlib.sha256(b"p").digest(), None)
    assert (bad.adapter, bad.error) == (4, "it is bad")
    assert not core.step().adapters


def test_an_unloaded_adapter_stays_for_those_who_have_it(core: EngineCore) -> None:
    core.handle(load(0))
    core.handle(request("a", 0))
    core.step()
    core.handle(UnloadAdapter(adapter=0))
    core.handle(request("late", 0))
    step = core.step()
    assert step.stats.running_adapters == ["n0"]
    assert [(d.request_id, d.error) for d in step.deltas if d.error] == [("late", NOT_LOADED)]
    assert held(core) == {0: "p"}
    assert finish(core) == {"a": "length"}
    assert held(core) == {}
    core.handle(UnloadAdapter(adapter=0))  # once more: nothing to do
    finish(core)


def test_requests_for_adapters_that_are_not_there_end_with_an_error(core: EngineCore) -> None:
    core.handle(request("a", 7))
    assert finish(core) == {"a": NOT_LOADED}


def test_equal_prompts_wait_for_each_other_under_equal_adapters_alone(core: EngineCore) -> None:
    for number, path in enumerate(("p", "p", "q")):
        core.handle(load(number, path))
        core.handle(request(f"r{number}", number))
    core.handle(request("plain"))
    stats = core.step().stats
    assert (stats.running_adapters, stats.waiting_adapters) == (["n0", "n2"], ["n1"])
    assert len(finish(core)) == 4
    assert core.scheduler.counters.prefix_hits == 32


def test_blocks_have_equal_names_only_for_equal_adapters_salts_and_tokens() -> None:
    """A salt that spells an adapter's digest is no way to its blocks."""
    kv = KVCacheManager(8, 4)
    places: dict[bytes, tuple[Any, ...]] = {}
    digests, salts = (None, b"a" * 32, b"b" * 32), (None, "a" * 32, "b" * 32, "a" * 64, "a")
    for digest, salt, token in itertools.product(digests, salts, (1, 2)):
        for number in (0, 5):  # which is of no account
            message = request("x", cache_salt=salt)
            message.prompt = pack_tokens([token] * 8)
            adapter = None if digest is None else Adapter(number, "n", digest)
            made = Request(message, max_model_len=99, eos_token_ids=frozenset(), adapter=adapter)
            for index, name in enumerate(kv._names_of(made, 2)):
                place = (digest, salt, token, index)
                assert places.setdefault(name, place) == place
    assert len(places) == len(digests) * len(salts) * 2 * 2
