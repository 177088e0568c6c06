"""The real `openai` client against the server; answers against the fake model's known tokens."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from pellucid.runner.fake import expected_answer
from tests.frontend.tiny import tiny_text
from tests.server.live import MODEL, Live, live

VOCAB = range(3, 550)
USER: Any = {"role": "user", "content": "Once upon a time"}
CHAT_TEXT = "user: Once upon a time\nassistant:"


def ids_of(text: str) -> list[int]:
    return tiny_text().tokenizer.encode(text)


def decode(ids: list[int]) -> str:
    return tiny_text().tokenizer.decode(ids)


def answer_to(prompt: str | list[int], count: int, seed: int) -> list[int]:
    ids = ids_of(prompt) if isinstance(prompt, str) else prompt
    return expected_answer(ids, count, seed=seed, vocab=VOCAB)


def test_chat(site: Live) -> None:
    done = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], max_completion_tokens=30, seed=4
    )
    choice = done.choices[0]
    assert done.object == "chat.completion"
    assert done.id.startswith("chatcmpl-")
    assert done.model == MODEL
    assert done.system_fingerprint
    assert choice.message.role == "assistant"
    assert choice.message.content == decode(answer_to(CHAT_TEXT, 30, 4))
    assert choice.finish_reason == "length"
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(ids_of(CHAT_TEXT))
    assert done.usage.completion_tokens == 30
    assert done.usage.total_tokens == done.usage.prompt_tokens + 30


def test_chat_streamed_is_chat_whole(site: Live) -> None:
    client = site.openai()
    fields: dict[str, Any] = {"model": MODEL, "messages": [USER], "max_tokens": 40, "seed": 5}
    whole = client.chat.completions.create(**fields, n=2, logprobs=True, top_logprobs=2)
    text, reasons, logprobs = ["", ""], ["", ""], [[], []]  # type: ignore[var-annotated]
    chunks = client.chat.completions.create(
        **fields,
        n=2,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage, ids = None, set()
    for chunk in chunks:
        ids.add((chunk.id, chunk.created, chunk.model, chunk.system_fingerprint))
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            if choice.logprobs and choice.logprobs.content:
                logprobs[choice.index] += choice.logprobs.content
    assert len(ids) == 1
    assert text == [choice.message.content for choice in whole.choices]
    assert text == [decode(answer_to(CHAT_TEXT, 40, seed)) for seed in (5, 6)]
    assert reasons == ["length", "length"]
    assert logprobs == [c.logprobs.content for c in whole.choices if c.logprobs]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 80
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_chat_logprobs_spell_the_answer(site: Live) -> None:
    done = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=20, seed=4, logprobs=True, top_logprobs=3
    )
    choice = done.choices[0]
    assert choice.logprobs is not None
    entries = choice.logprobs.content
    assert entries is not None
    assert len(entries) == 20
    spelled = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert spelled.decode(errors="replace") == choice.message.content
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert entries[0].top_logprobs[0].token == entries[0].token


def test_a_stream_has_openais_order_of_events(site: Live) -> None:
    body = {"messages": [USER], "max_tokens": 6, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    lines = site.post("/v1/chat/completions", **body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    first, *middle, last, usage = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["choices"][0]["finish_reason"] is None
    for event in middle:
        assert set(event["choices"][0]["delta"]) == {"content"}
        assert event["usage"] is None
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_usage_is_left_out_of_a_stream_that_did_not_ask_and_counted_in_one_that_did(
    site: Live,
) -> None:
    body: dict[str, Any] = {"prompt": "Once", "max_tokens": 5, "stream": True, "seed": 1}
    assert "usage" not in site.post("/v1/completions", **body).text
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    lines = site.post("/v1/completions", **body).text.split("\n\n")[:-2]
    counts = [json.loads(line[6:])["usage"]["completion_tokens"] for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert len(set(counts)) > 1


def test_completions_in_all_four_forms(site: Live) -> None:
    client = site.openai()
    one, two = ids_of("Once upon"), ids_of("another word")
    forms: list[tuple[Any, list[list[int]]]] = [
        ("Once upon", [one]),
        (["Once upon", "another word"], [one, two]),
        (one, [one]),
        ([one, two], [one, two]),
    ]
    for prompt, prompts in forms:
        done = client.completions.create(model=MODEL, prompt=prompt, max_tokens=7, seed=2, n=2)
        expected = [decode(answer_to(ids, 7, 2 + answer)) for ids in prompts for answer in (0, 1)]
        assert [choice.text for choice in done.choices] == expected
        assert [choice.index for choice in done.choices] == list(range(len(expected)))
        assert done.usage is not None
        assert done.usage.prompt_tokens == sum(map(len, prompts))
        assert done.usage.completion_tokens == 7 * len(expected)

        text = [""] * len(expected)
        for chunk in client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=7, seed=2, n=2, stream=True
        ):
            for choice in chunk.choices:
                text[choice.index] += choice.text
        assert text == expected


def test_completions_default_to_sixteen_tokens_and_chat_to_the_context(site: Live) -> None:
    client = site.openai()
    done = client.completions.create(model=MODEL, prompt="Once")
    assert done.usage is not None
    assert done.usage.completion_tokens == 16
    chat = client.chat.completions.create(model=MODEL, messages=[USER])
    assert chat.usage is not None
    assert chat.usage.total_tokens == 512


def test_echo_with_logprobs_scores_the_prompt(site: Live) -> None:
    text = "Once upon a time 東京 there was"
    done = site.openai().completions.create(
        model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=2
    )
    choice = done.choices[0]
    scores = choice.logprobs
    assert choice.text == text
    assert done.usage is not None
    assert done.usage.completion_tokens == 0
    assert scores is not None
    assert scores.tokens is not None
    assert scores.token_logprobs is not None
    assert scores.top_logprobs is not None
    assert scores.text_offset is not None
    assert len(scores.tokens) == len(ids_of(text)) == len(scores.text_offset)
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert all(value is not None for value in scores.token_logprobs[1:])
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        if "\ufffd" not in token:  # a token of half a character has no text of its own
            assert text[offset : offset + len(token)] == token


def test_echo_puts_the_prompt_before_the_answer(site: Live) -> None:
    client = site.openai()
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "seed": 2, "echo": True}
    for prompt in ("Once upon", ids_of("Once upon")):
        expected = "Once upon" + decode(answer_to("Once upon", 9, 2))
        done = client.completions.create(prompt=prompt, logprobs=1, **fields)
        assert done.choices[0].text == expected
        whole = done.choices[0].logprobs
        chunks = list(client.completions.create(prompt=prompt, logprobs=1, stream=True, **fields))
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        parts = [chunk.choices[0].logprobs for chunk in chunks]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [entry for part in parts if part for entry in getattr(part, name)]
            assert joined == getattr(whole, name)
        assert len(joined) == len(ids_of("Once upon")) + 9


def test_a_stop_string_ends_the_answer_and_is_named(site: Live) -> None:
    client = site.openai()
    full = decode(answer_to("Once", 60, 2))
    stop = full[20:24]
    before = full[: full.index(stop)]
    fields: dict[str, Any] = {"model": MODEL, "prompt": "Once", "max_tokens": 60, "seed": 2}
    done = client.completions.create(stop=[stop, "never there"], **fields)
    assert done.choices[0].text == before
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].model_dump()["stop_reason"] == stop
    streamed = list(client.completions.create(stop=stop, stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in streamed) == before
    assert streamed[-1].choices[0].finish_reason == "stop"
    kept = client.completions.create(
        stop=stop, extra_body={"include_stop_str_in_output": True}, **fields
    )
    assert kept.choices[0].text == before + stop


def test_a_stop_token_id_ends_the_answer_and_is_named(site: Live) -> None:
    ids = answer_to("Once", 30, 2)
    done = site.post(
        "/v1/completions", prompt="Once", max_tokens=30, seed=2, stop_token_ids=[ids[10]]
    ).json()["choices"][0]
    end = ids.index(ids[10])
    assert done["text"] == decode(ids[:end])
    assert (done["finish_reason"], done["stop_reason"]) == ("stop", ids[10])


def test_the_extensions_of_vllm(site: Live) -> None:
    ids = answer_to("Once upon", 5, 2)
    done = site.post(
        "/v1/completions",
        prompt="Once upon",
        max_tokens=5,
        seed=2,
        logprobs=1,
        prompt_logprobs=2,
        return_token_ids=True,
        return_tokens_as_token_ids=True,
    ).json()["choices"][0]
    prompt = ids_of("Once upon")
    assert done["token_ids"] == ids
    assert done["prompt_token_ids"] == prompt
    assert done["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids]
    first, second = done["prompt_logprobs"]
    assert first is None
    assert second[str(prompt[1])]["decoded_token"] == tiny_text().tokenizer.token_text(prompt[1])
    assert len(second) == 2

    chat = site.post(
        "/v1/chat/completions",
        messages=[USER],
        max_tokens=5,
        seed=2,
        prompt_logprobs=0,
        return_token_ids=True,
    ).json()
    assert chat["prompt_token_ids"] == ids_of(CHAT_TEXT)
    assert chat["choices"][0]["token_ids"] == answer_to(CHAT_TEXT, 5, 2)
    assert len(chat["prompt_logprobs"]) == len(ids_of(CHAT_TEXT))

    chunks = site.openai().chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=5, n=2, seed=2, stream=True,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    told = [(chunk.model_extra or {}).get("prompt_token_ids") for chunk in chunks]
    assert told[0] == ids_of(CHAT_TEXT)
    assert not any(told[1:])


def test_prompts_are_truncated_from_the_left_when_asked(site: Live) -> None:
    ids = ids_of("Once upon a time there was")
    done = site.post(
        "/v1/completions", prompt=ids, max_tokens=4, seed=2, truncate_prompt_tokens=3, echo=True
    ).json()
    assert done["usage"]["prompt_tokens"] == 3
    assert done["choices"][0]["text"] == decode(ids[-3:] + answer_to(ids[-3:], 4, 2))


def test_a_bare_prompt_is_a_message_of_the_user(site: Live) -> None:
    fields: dict[str, Any] = {"max_tokens": 9, "seed": 2}
    bare = site.post("/v1/chat/completions", prompt=USER["content"], **fields).json()
    full = site.post("/v1/chat/completions", messages=[USER], **fields).json()
    assert bare["choices"] == full["choices"]


def test_an_answer_can_be_continued(site: Live) -> None:
    start = {"role": "assistant", "content": "There was"}
    fields: dict[str, Any] = {"max_tokens": 9, "seed": 2, "continue_final_message": True}
    expected = decode(answer_to("user: Once upon a time\nassistant: There was", 9, 2))
    for echo in (False, True):
        body = {"messages": [USER, start], "echo": echo, **fields}
        text = site.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
        assert text == (start["content"] if echo else "") + expected
        streamed = site.post("/v1/chat/completions", stream=True, **body).text.split("\n\n")[:-2]
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in streamed]
        assert "".join(delta.get("content", "") for delta in deltas) == text


def test_a_repeated_prompt_is_reported_as_cached(site: Live) -> None:
    prompt = [3 + k % 500 for k in range(7, 107)]
    salt = {"prompt": prompt, "max_tokens": 1, "cache_salt": "mine"}
    counts = [
        site.post("/v1/completions", **body).json()["usage"]["prompt_tokens_details"]
        for body in (salt, salt, {**salt, "cache_salt": "yours"})
    ]
    assert counts == [{"cached_tokens": 0}, {"cached_tokens": 96}, {"cached_tokens": 0}]


def test_models(site: Live) -> None:
    client = site.openai()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_the_client_raises_the_error_that_belongs_to_the_status(site: Live) -> None:
    client = site.openai()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="x", temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"


def test_thirty_two_concurrent_streams_each_get_their_own_answer() -> None:
    async def one(client: openai.AsyncOpenAI, index: int) -> None:
        text, count = "", 20 + index
        chunks = await client.completions.create(
            model=MODEL, prompt=f"Item {index}", max_tokens=count, seed=index, stream=True
        )
        async for chunk in chunks:
            text += chunk.choices[0].text
        assert text == decode(answer_to(f"Item {index}", count, index))

    async def all_of_them(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            await asyncio.gather(*(one(client, index) for index in range(32)))

    with live(max_num_seqs=16) as site:
        asyncio.run(all_of_them(site.url))
        assert site.is_idle()
