"""Far more clients than places: everyone gets an answer or is told when to come back."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import httpx
import psutil
import pytest

from tests.server.live import Live, eventually, leaving, live
from tests.server.test_failures import TEXT

CLIENTS = 500


async def crowd(site: Live) -> Counter[int]:
    statuses: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=site.url, limits=limits, timeout=60) as client:

        async def one(index: int) -> None:
            body = {"prompt": f"{index} times", "max_tokens": 20, "ignore_eos": True}
            response = await client.post(TEXT, json=body | {"stream": index % 2 == 0})
            statuses[response.status_code] += 1
            if response.status_code == 200:
                assert ("[DONE]" in response.text) == (index % 2 == 0)
            else:
                assert response.json()["error"]["code"] == "queue_full"
                assert int(response.headers["retry-after"]) >= 1

        async with asyncio.timeout(60):
            await asyncio.gather(*(one(index) for index in range(CLIENTS)))
    return statuses


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_five_hundred_clients_at_a_queue_of_64() -> None:
    with live(runner={"step_seconds": 0.005}, max_num_seqs=16, max_waiting=48) as site:
        memory = []
        for _ in range(3):
            statuses = asyncio.run(crowd(site))
            assert set(statuses) == {200, 429}
            assert statuses.total() == CLIENTS
            assert statuses[200] >= 64
            assert eventually(site.is_idle)
            assert site.llm.num_unfinished == 0
            assert site.gateway.num_active == 0
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)
        # The first crowd may make allocators and caches grow; later ones must not.
        assert max(memory[1:]) - memory[0] < 32 << 20, memory


def test_prompts_that_wait_are_bounded_by_their_tokens() -> None:
    settings = {"max_num_seqs": 1, "max_waiting": 100, "max_waiting_tokens": 100}
    with live(runner={"step_seconds": 0.02}, **settings) as site:
        long = {"max_tokens": 400, "ignore_eos": True}
        with leaving(site.url, TEXT, prompt=[70] * 90, **long):
            assert eventually(lambda: site.metric("vllm:generation_tokens_total") > 0)
            # What runs does not wait, so an empty queue takes a prompt of any length that fits.
            with leaving(site.url, TEXT, prompt=[70] * 101, **long):
                assert eventually(lambda: site.llm.num_unfinished == 2)
                refused = site.post(TEXT, prompt=[70] * 5)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "101 tokens" in refused.json()["error"]["message"]
        assert eventually(site.is_idle)
        assert site.post(TEXT, prompt=[70] * 5).status_code == 200


def test_n_answers_share_one_prompt() -> None:
    with live(max_num_seqs=64, max_waiting=64, max_waiting_tokens=100) as site:
        assert site.post(TEXT, prompt=[70] * 90, n=4, max_tokens=3).status_code == 200
