"""Vectors for asyncio programs and for scripts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from pellucid import LLM
from pellucid.config import EngineConfig
from pellucid.errors import BadRequest, EngineDead, PellucidError, RequestTimeout
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.embedding import NOTHING_SAMPLED, vector_of
from pellucid.frontend.outputs import Delta
from pellucid.messages import Pooling, TokenDelta
from pellucid.runner.fake import expected_embedding
from pellucid.sampling_params import SamplingParams
from tests.frontend.running import CONFIG, collect, run, settle, with_fake, with_script
from tests.frontend.tiny import ScriptedClient, fake_client, tiny_text

TEXT = "Once upon a time"


def raw(prompt: str | list[int], pooling: Pooling = "last") -> np.ndarray:
    ids = tiny_text().tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return np.frombuffer(expected_embedding(ids, pooling), "<f4")


def test_a_vector_has_length_one_unless_asked_otherwise() -> None:
    async def test(llm: AsyncLLM) -> None:
        assert await llm.embed(TEXT, normalize=False) == raw(TEXT).tolist()
        assert await llm.embed([5, 6, 7], pooling="mean", normalize=False) == (
            raw([5, 6, 7], "mean").tolist()
        )
        unit = np.array(await llm.embed(TEXT))
        np.testing.assert_allclose(unit, raw(TEXT) / np.linalg.norm(raw(TEXT)), rtol=1e-6)

    with_fake(test)


def test_vectors_and_answers_share_the_engine() -> None:
    async def test(llm: AsyncLLM) -> None:
        params = SamplingParams(max_tokens=30, seed=1)
        prompts = [[20 + i] * (1 + 5 * i) for i in range(12)]
        *found, answer = await asyncio.gather(
            *(llm.embed(prompt, pooling="mean", normalize=False) for prompt in prompts),
            collect(llm, TEXT, params),
        )
        assert found == [raw(prompt, "mean").tolist() for prompt in prompts]
        assert [d.token_ids for d in answer] == [
            d.token_ids for d in await collect(llm, TEXT, params)
        ]
        assert llm.num_unfinished == 0

    with_fake(test, EngineConfig.of(runner="fake", block_size=4, max_chunk_tokens=7))


def test_the_whole_context_is_the_prompts() -> None:
    async def test(llm: AsyncLLM) -> None:
        size = llm.info.max_model_len
        assert await llm.embed([7] * size, normalize=False) == raw([7] * size).tolist()
        cut = await llm.embed([5, *[7] * size], truncate_prompt_tokens=-1, normalize=False)
        assert cut == raw([7] * size).tolist()
        with pytest.raises(BadRequest, match=f"However, prompt has {size + 1} tokens") as refused:
            await llm.embed([7] * (size + 1))
        assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")

    with_fake(test)


def test_a_cancelled_caller_aborts_the_request() -> None:
    async def test(llm: AsyncLLM, client: ScriptedClient) -> None:
        task = asyncio.create_task(llm.embed(TEXT))
        await settle()
        (message,) = client.added
        assert message.pooling == "last"
        task.cancel()
        await settle()
        assert client.aborted == [[message.request_id]]

    with_script(test)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ({"finish_reason": "timeout"}, RequestTimeout),
        ({"finish_reason": "error", "error": "not finite"}, PellucidError),
        ({"finish_reason": "abort"}, PellucidError),
        (None, EngineDead),
    ],
    ids=str,
)
def test_a_request_without_a_vector_raises(
    end: dict[str, str] | None, error: type[Exception]
) -> None:
    async def test(llm: AsyncLLM, client: ScriptedClient) -> None:
        task = asyncio.create_task(llm.embed(TEXT))
        await settle()
        if end is None:
            client.die()
        else:
            client.feed(TokenDelta(client.added[0].request_id, [], **end))
        with pytest.raises(error, match=(end or {}).get("error")):
            await task

    with_script(test)


def test_a_vector_outlives_an_engine_that_dies() -> None:
    async def body() -> None:
        first = ScriptedClient()
        async with AsyncLLM(CONFIG, first, text=tiny_text(), retries=1) as llm:
            task = asyncio.create_task(llm.embed(TEXT, normalize=False))
            await settle()
            first.die()
            await settle()
            await llm.restart(fake_client(CONFIG))
            assert await task == raw(TEXT).tolist()

    run(body())


def test_zeros_have_no_direction() -> None:
    zeros = Delta(0, "", [], finish_reason="stop", embedding=bytes(16))
    assert vector_of(zeros, normalize=True).tolist() == [0.0] * 4
    assert NOTHING_SAMPLED.greedy


def test_scripts_get_a_list_for_each_text_in_their_order() -> None:
    with LLM(text=tiny_text(), runner="fake", max_num_seqs=4) as llm:
        prompts: list[str | list[int]] = [[70 + i] * (1 + (7 * i) % 23) for i in range(40)]
        found = llm.embed([*prompts, TEXT], pooling="mean", normalize=False)
        assert found == [raw(prompt, "mean").tolist() for prompt in [*prompts, TEXT]]
        assert llm.embed(TEXT) == [
            vector.tolist() for vector in [raw(TEXT) / np.linalg.norm(raw(TEXT))]
        ]
        assert llm.embed([]) == []
        with pytest.raises(BadRequest, match="at least one token"):
            llm.embed([TEXT, ""])


def test_an_impatient_script_is_told() -> None:
    with (
        LLM(
            text=tiny_text(),
            runner="fake",
            fake_step_ms=50,
            max_chunk_tokens=4,
            request_timeout=0.1,
        ) as llm,
        pytest.raises(RequestTimeout),
    ):
        llm.embed([[7] * 100])
