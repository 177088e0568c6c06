"""The answer cache: what may be given again, to whom, and in which shape."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.server.gateway.stores import OVERHEAD_BYTES, MemoryStore
from tests.server.gateway.conftest import RedisServer
from tests.server.live import Live, eventually, live

PATH = "/v1/completions"
SEEDED: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 9, "seed": 3, "temperature": 0.8}


@pytest.fixture
def caching() -> Iterator[Live]:
    with live(gateway={"cache": "memory"}) as site:
        yield site


def outcome(response: httpx.Response) -> str | None:
    assert response.status_code == 200, response.text
    return response.headers.get("x-pellucid-cache")


def generated(site: Live) -> float:
    return site.metric("vllm:generation_tokens_total")


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(response: httpx.Response) -> str:
    if response.headers["content-type"].startswith("text/event-stream"):
        events = events_of(response)
        return "".join(c["text"] for event in events for c in event["choices"])
    return str(response.json()["choices"][0]["text"])


def test_a_hit_is_the_same_answer_without_the_engine(caching: Live) -> None:
    body = {**SEEDED, "logprobs": 2, "return_token_ids": True}
    first = caching.post(PATH, **body)
    assert outcome(first) == "miss"
    before = generated(caching)
    second = caching.post(PATH, **body)
    assert outcome(second) == "hit"
    assert generated(caching) == before
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["id"] != first.json()["id"]
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    usage, old = second.json()["usage"], first.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
    assert usage["completion_tokens"] == old["completion_tokens"] == 9
    assert caching.gateway.counts.cache == {"miss": 1, "hit": 1}


@pytest.mark.parametrize("streams_first", [True, False])
def test_streams_and_whole_answers_are_one(caching: Live, streams_first: bool) -> None:
    include = {"stream_options": {"include_usage": True}}
    bodies = [{**SEEDED, "stream": True, **include}, SEEDED]
    if not streams_first:
        bodies.reverse()
    first, second = (caching.post(PATH, **body) for body in bodies)
    assert [outcome(first), outcome(second)] == ["miss", "hit"]
    assert text_of(first) == text_of(second)
    streamed = events_of(first if streams_first else second)
    whole = (second if streams_first else first).json()
    assert streamed[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_chat_is_cached_by_what_the_template_makes_of_it(caching: Live) -> None:
    path = "/v1/chat/completions"
    body = {"seed": 1, "max_tokens": 6}
    first = caching.post(path, **body, messages=[{"role": "user", "content": "Hi"}])
    second = caching.post(path, **body, prompt="Hi", stream=True, user="me", metadata={"a": "b"})
    assert [outcome(first), outcome(second)] == ["miss", "hit"]
    text = "".join(c["delta"].get("content") or "" for e in events_of(second) for c in e["choices"])
    assert text == first.json()["choices"][0]["message"]["content"]


def test_the_name_of_the_field_that_asks_for_a_form_is_no_part_of_the_key(caching: Live) -> None:
    first = caching.post(PATH, **SEEDED, guided_choice=["yes", "no"])
    second = caching.post(PATH, **SEEDED, structured_outputs={"choice": ["yes", "no"]})
    assert [outcome(first), outcome(second)] == ["miss", "hit"]
    assert text_of(first) == text_of(second)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Once upoN"},
        {"prompt": [70, 71]},
        {"max_tokens": 8},
        {"seed": 4},
        {"temperature": 0.9},
        {"top_p": 0.5},
        {"stop": ["x"]},
        {"logprobs": 1},
        {"logit_bias": {"70": 1}},
        {"n": 2},
        {"cache_salt": "mine"},
        {"truncate_prompt_tokens": 2},
        {"add_special_tokens": False},
    ],
    ids=str,
)
def test_whatever_may_change_the_answer_is_part_of_the_key(
    caching: Live, change: dict[str, Any]
) -> None:
    assert outcome(caching.post(PATH, **SEEDED)) == "miss"
    assert outcome(caching.post(PATH, **SEEDED | change)) == "miss"
    assert outcome(caching.post(PATH, **SEEDED | change)) == "hit"
    assert outcome(caching.post(PATH, **SEEDED)) == "hit"


def test_a_greedy_answer_knows_no_chance(caching: Live) -> None:
    greedy = {"prompt": "Once", "max_tokens": 4, "temperature": 0}
    first = caching.post(PATH, **greedy)
    second = caching.post(PATH, **greedy, seed=7, top_p=0.5, top_k=3, min_p=0.1)
    assert [outcome(first), outcome(second)] == ["miss", "hit"]
    assert text_of(first) == text_of(second)


@pytest.mark.parametrize("change", [{"seed": None}, {"cache": False}])
def test_chance_and_those_who_ask_for_it_bypass(caching: Live, change: dict[str, Any]) -> None:
    body = SEEDED | change
    assert outcome(caching.post(PATH, **body)) == "bypass"
    assert outcome(caching.post(PATH, **body)) == "bypass"
    assert outcome(caching.post(PATH, **SEEDED)) == "miss"  # nor was it kept


def test_off_is_off(site: Live) -> None:
    assert [outcome(site.post(PATH, **SEEDED)) for _ in range(2)] == [None, None]


def test_several_prompts_are_a_hit_only_together(caching: Live) -> None:
    both = SEEDED | {"prompt": ["a", "b"], "n": 2}
    assert outcome(caching.post(PATH, **SEEDED | {"prompt": "a", "n": 2})) == "miss"
    first = caching.post(PATH, **both)
    second = caching.post(PATH, **both)
    assert [outcome(first), outcome(second)] == ["miss", "hit"]
    assert first.json()["choices"] == second.json()["choices"]


@pytest.mark.parametrize("shared", [False, True])
def test_keys_see_each_others_answers_only_if_told_so(shared: bool) -> None:
    settings = {
        "cache": "memory",
        "cache_shared": shared,
        "api_key": ["alice:sk-alice-0123456789", "bob:sk-bob-0123456789"],
    }
    with live(gateway=settings) as site:

        def ask(name: str) -> str | None:
            headers = {"Authorization": f"Bearer sk-{name}-0123456789"}
            return outcome(site.http.post(PATH, json=SEEDED, headers=headers))

        assert [ask("alice"), ask("alice")] == ["miss", "hit"]
        assert ask("bob") == ("hit" if shared else "miss")


def test_an_answer_that_was_cut_short_is_not_kept() -> None:
    with live(runner={"step_seconds": 0.02}, gateway={"cache": "memory"}) as site:
        body = SEEDED | {"max_tokens": 400, "ignore_eos": True, "timeout": 0.2}
        assert site.post(PATH, **body).status_code == 504
        with httpx.stream("POST", site.url + PATH, json=body | {"stream": True}) as response:
            next(response.iter_text())
        assert eventually(site.is_idle)
        assert site.post(PATH, **body).headers["x-pellucid-cache"] == "miss"


# ---- memory


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from([0, 100, 300, 900, None, None])),
        min_size=6,
        max_size=40,
    )
)
def test_memory_holds_the_latest_that_fit(actions: list[tuple[str, int | None]]) -> None:
    budget = 1000
    store = MemoryStore(budget, ttl=60)
    model: list[tuple[bytes, bytes]] = []  # least recently used first

    async def play() -> None:
        for name, size in actions:
            key = name.encode()
            known = dict(model).get(key)
            if size is None:
                assert await store.get(key) == known
                if known is not None:
                    model.remove((key, known))
                    model.append((key, known))
                continue
            value = bytes(size)
            await store.put(key, value)
            model[:] = [entry for entry in model if entry[0] != key]
            if size + OVERHEAD_BYTES <= budget:  # one that cannot fit drives nobody out
                model.append((key, value))
            while sum(len(v) + OVERHEAD_BYTES for _, v in model) > budget:
                del model[0]
            assert store.num_bytes == sum(len(v) + OVERHEAD_BYTES for _, v in model)
        assert [await store.get(key) for key, _ in model] == [value for _, value in model]

    asyncio.run(play())


def test_memory_forgets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    async def play() -> None:
        store = MemoryStore(10_000, ttl=10)
        await store.put(b"k", b"v")
        now[0] = 9.0
        assert await store.get(b"k") == b"v"
        now[0] = 10.0
        assert await store.get(b"k") is None
        assert store.num_bytes == 0
        await store.put(b"large", bytes(10_000))
        assert await store.get(b"large") is None

    play_now = play()
    with pytest.raises(StopIteration):
        play_now.send(None)


# ---- Redis


def test_two_servers_share_their_answers(redis_server: RedisServer) -> None:
    settings = {"cache": redis_server.url, "cache_ttl": 100}
    with live(gateway=settings) as one, live(gateway=settings) as other:
        first = one.post(PATH, **SEEDED)
        assert outcome(first) == "miss"
        assert eventually(lambda: bool(redis_server.client.keys()))
        second = other.post(PATH, **SEEDED)
        assert outcome(second) == "hit"
        assert second.json()["choices"] == first.json()["choices"]
        assert generated(other) == 0
        (name,) = redis_server.client.keys("pellucid:answer:*")
        assert 0 < redis_server.client.ttl(name) <= 100


def test_engines_that_differ_share_nothing(redis_server: RedisServer) -> None:
    with live(gateway={"cache": redis_server.url}) as one:
        assert one.gateway.cache is not None
        assert outcome(one.post(PATH, **SEEDED)) == "miss"
        assert eventually(lambda: bool(redis_server.client.keys()))
        one.service.identity = "another model"
        assert outcome(one.post(PATH, **SEEDED)) == "miss"


@pytest.mark.parametrize("damage", ["cut", "garbage", "another's"])
def test_a_damaged_entry_is_a_miss(redis_server: RedisServer, damage: str) -> None:
    with live(gateway={"cache": redis_server.url}) as site:
        first = site.post(PATH, **SEEDED)
        assert eventually(lambda: bool(redis_server.client.keys()))
        (name,) = redis_server.client.keys()
        value = redis_server.client.get(name)
        if damage == "another's":
            site.post(PATH, **SEEDED | {"prompt": "Other"})
            assert eventually(lambda: len(redis_server.client.keys()) == 2)
            (other,) = set(redis_server.client.keys()) - {name}
            value = redis_server.client.get(other)
        wrong = {"cut": value[:-3], "garbage": b"\xc1nonsense", "another's": value}[damage]
        redis_server.client.set(name, wrong)
        second = site.post(PATH, **SEEDED)
        assert outcome(second) == "miss"
        assert text_of(second) == text_of(first)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_redis_that_dies_or_hangs_costs_only_the_hits(
    redis_server: RedisServer, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pellucid.server.gateway.breaker.REST_SECONDS", 0.5)
    with live(gateway={"cache": redis_server.url}) as site:
        site.post(PATH, **SEEDED)
        assert eventually(lambda: bool(redis_server.client.keys()))
        assert outcome(site.post(PATH, **SEEDED)) == "hit"
        assert redis_server.process is not None
        os.kill(redis_server.process.pid, how)
        for seed in range(5):
            assert outcome(site.post(PATH, **SEEDED | {"seed": seed})) == "miss"
        assert site.gateway.counts.redis_failures >= 1
        if how == signal.SIGSTOP:
            os.kill(redis_server.process.pid, signal.SIGCONT)
        else:
            redis_server.kill()
            redis_server.start()
        assert eventually(lambda: outcome(site.post(PATH, **SEEDED)) == "hit")
        # Replies that came too late must not be taken for those of later commands.
        answers = {seed: text_of(site.post(PATH, **SEEDED | {"seed": seed})) for seed in range(5)}
        again = {seed: text_of(site.post(PATH, **SEEDED | {"seed": seed})) for seed in range(5)}
        assert answers == again
        assert len(set(answers.values())) == 5
