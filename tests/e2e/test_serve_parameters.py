"""What a request may ask for, end to end: the openai client, a process, the real model.

Prompts are shorter than a block: what is found of them in the cache would change the shape of the
batch, and with llama.cpp the last digits of its sums.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openai
import pytest

from tests.e2e.serving import NAME

pytestmark = pytest.mark.model

PROMPT = "The three primary colours are red,"
ANSWER = 16


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, **fields: Any) -> list[str]:
    fields = {"max_tokens": ANSWER, **fields}
    extra = {"ignore_eos": True}
    done = client.completions.create(model=NAME, prompt=PROMPT, extra_body=extra, **fields)
    assert [choice.index for choice in done.choices] == list(range(len(done.choices)))
    return [choice.text for choice in done.choices]


def test_a_seed_repeats_an_answer_and_another_gives_another(client: openai.OpenAI) -> None:
    first, second, other = (complete(client, seed=seed) for seed in (5, 5, 6))
    assert first == second != other


def test_a_temperature_of_zero_is_the_likeliest_token_each_time(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=ANSWER, temperature=0, logprobs=3
    )
    told = done.choices[0].logprobs
    assert "".join(told.tokens) == done.choices[0].text
    assert len(told.tokens) == ANSWER
    for logprob, top in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert logprob == max(top.values())
        assert sum(math.exp(value) for value in top.values()) <= 1.0001


def test_logprobs_of_a_chat_spell_its_answer(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "Why is the sky blue?"}],
        max_completion_tokens=ANSWER,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    ).choices[0]
    assert choice.finish_reason == "length"
    entries = choice.logprobs.content
    assert len(entries) == ANSWER
    spelled = b"".join(bytes(entry.bytes) for entry in entries)
    assert spelled.decode() == choice.message.content
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, stream: bool) -> None:
    (whole,) = complete(client, temperature=0)
    stop = whole.split()[2]
    fields: dict[str, Any] = {"temperature": 0, "stop": ["never said", stop], "stream": stream}
    done = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=ANSWER, **fields)
    choices = [c for chunk in done for c in chunk.choices] if stream else done.choices
    assert "".join(choice.text for choice in choices) == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_max_tokens_and_n_are_counted(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=5, n=3, seed=1, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in done.choices} == {"length"}
    assert len({choice.text for choice in done.choices}) > 1
    assert done.usage.completion_tokens == 15


def test_an_answer_keeps_its_form(client: openai.OpenAI) -> None:
    words = ["crimson", "emerald"]
    done = client.completions.create(
        model=NAME, prompt=PROMPT, extra_body={"structured_outputs": {"choice": words}}
    )
    assert done.choices[0].text in words


def test_vectors_of_like_texts_are_alike(client: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat was sitting on a mat.", "Taxes rose by 3%."]
    one, like, unlike = (
        np.array(told.embedding) for told in client.embeddings.create(model=NAME, input=texts).data
    )
    assert one.shape == (576,)
    assert one @ like > one @ unlike


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("temperature", -0.5, "0"),
        ("top_p", 1.5, "1"),
        ("max_tokens", 0, "1"),
        ("n", 0, "1"),
        ("logprobs", 10_000, "20"),
        ("stop", [""], "empty"),
        ("seed", "seven", "int"),
        ("logit_bias", {"999999": 1}, "49151"),
        ("prompt", [1] * 9000, "8192"),
        ("colour", "red", "colour"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    client: openai.OpenAI, field: str, value: object, limit: str
) -> None:
    body = {"model": NAME, "prompt": PROMPT, field: value}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/completions", body=body, cast_to=object)
    assert refused.value.param == field
    assert limit in refused.value.body["message"]
