"""What a request becomes, and what is refused by name before the engine sees it."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import processors

from pellucid.errors import BadRequest
from pellucid.frontend.inputs import INLINE_CHARS, InputProcessor, PreparedRequest
from pellucid.frontend.tokenizer import Tokenizer
from pellucid.messages import unpack_tokens
from pellucid.sampling_params import SamplingParams
from tests.frontend.tiny import VOCAB_SIZE, engine_info, tiny_text


def processor(request_timeout: float = math.inf, **info: Any) -> InputProcessor:
    return InputProcessor(tiny_text().tokenizer, engine_info(**info), request_timeout)


def prepare(
    prompt: str | list[int],
    params: SamplingParams | None = None,
    *,
    inputs: InputProcessor | None = None,
    **options: Any,
) -> PreparedRequest:
    return asyncio.run(
        (inputs or processor()).prepare(prompt, params or SamplingParams(), **options)
    )


def refusal(*args: Any, **kwargs: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        prepare(*args, **kwargs)
    return caught.value


def test_text_and_its_token_ids_become_the_same_sequence() -> None:
    text = "Once upon a time"
    ids = tiny_text().tokenizer.raw.encode(text).ids
    for prompt in (text, ids):
        request = prepare(prompt, request_id="r")
        assert request.prompt_token_ids == ids
        assert [unpack_tokens(s.prompt) for s in request.sequences] == [ids]
        assert [s.request_id for s in request.sequences] == ["r"]


def test_a_long_text_is_tokenised_off_the_loop_with_the_same_result() -> None:
    inputs = processor(max_model_len=4096)
    text = "Once upon a time " * 200
    assert len(text) > INLINE_CHARS
    seen: list[int] = []
    encode = inputs._encode
    inputs._encode = lambda *a: (seen.append(threading.get_ident()), encode(*a))[1]  # type: ignore[method-assign]
    request = prepare(text, inputs=inputs)
    assert request.prompt_token_ids == tiny_text().tokenizer.raw.encode(text).ids
    assert seen != [threading.get_ident()]


def test_bos_comes_before_a_text_unless_unwanted() -> None:
    plain = tiny_text().tokenizer
    raw = RawTokenizer.from_str(plain.raw.to_str())
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $0", special_tokens=[("<bos>", 1)]
    )
    tokenizer = Tokenizer(raw, vocab_size=VOCAB_SIZE, special_tokens={"bos_token": "<bos>"})
    inputs = InputProcessor(tokenizer, engine_info(), math.inf)
    ids = plain.raw.encode("Once").ids
    assert prepare("Once", inputs=inputs).prompt_token_ids == [1, *ids]
    assert prepare("Once", inputs=inputs, add_special_tokens=False).prompt_token_ids == ids
    assert prepare(ids, inputs=inputs).prompt_token_ids == ids
    assert prepare("", inputs=inputs).prompt_token_ids == [1]


def test_the_envelope_reaches_the_engine() -> None:
    request = prepare("a", request_id="r", priority=-3, user="u", cache_salt="s", timeout=5.0)
    (sequence,) = request.sequences
    assert (sequence.priority, sequence.user, sequence.cache_salt) == (-3, "u", "s")
    assert sequence.deadline is not None
    assert sequence.deadline - sequence.arrival_time == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("limit", "timeout", "seconds"),
    [(math.inf, None, None), (9.0, None, 9.0), (9.0, 5.0, 5.0), (9.0, 50.0, 9.0)],
)
def test_the_shorter_of_timeout_and_limit_is_the_deadline(
    limit: float, timeout: float | None, seconds: float | None
) -> None:
    (sequence,) = prepare("a", inputs=processor(limit), timeout=timeout).sequences
    if seconds is None:
        assert sequence.deadline is None
    else:
        assert sequence.deadline == pytest.approx(sequence.arrival_time + seconds)


def test_n_answers_are_n_sequences_with_seeds_in_a_row() -> None:
    params = SamplingParams(n=3, seed=7, prompt_logprobs=1, max_tokens=4)
    sequences = prepare("Once upon", params, request_id="r").sequences
    assert [s.sampling.seed for s in sequences] == [7, 8, 9]
    assert [s.sampling.n for s in sequences] == [1, 1, 1]
    assert len({s.request_id for s in sequences}) == 3
    assert len({s.prompt for s in sequences}) == 1
    # The prompt's logprobs are computed once, for the answer that carries them.
    assert [s.sampling.prompt_logprobs for s in sequences] == [1, None, None]


def test_seeds_stay_in_64_bits_and_are_drawn_when_absent() -> None:
    top = (1 << 63) - 1
    sequences = prepare("a", SamplingParams(n=2, seed=top)).sequences
    assert [s.sampling.seed for s in sequences] == [top, -(1 << 63)]
    drawn = {prepare("a").sequences[0].sampling.seed for _ in range(20)}
    assert None not in drawn
    assert len(drawn) == 20


def test_max_tokens_is_what_fits_when_absent() -> None:
    params = SamplingParams(max_tokens=None)
    (sequence,) = prepare([5] * 6, params, inputs=processor(max_model_len=20)).sequences
    assert sequence.sampling.max_tokens == 14
    # The KV pool may be the smaller limit.
    small = processor(max_model_len=200, num_kv_blocks=2, block_size=8)
    (sequence,) = prepare([5] * 6, params, inputs=small).sequences
    assert sequence.sampling.max_tokens == 10


def test_bad_words_are_tokenised_with_and_without_a_leading_space() -> None:
    raw = tiny_text().tokenizer.raw
    (sequence,) = prepare("a", SamplingParams(bad_words=["word", "🙂"])).sequences
    assert sequence.sampling.bad_words_token_ids == [
        raw.encode(text).ids for text in ("word", " word", "🙂", " 🙂")
    ]


@pytest.mark.parametrize(
    ("limit", "max_tokens", "kept"), [(3, 8, 3), (100, 8, 10), (-1, 13, 7), (-1, None, 10)]
)
def test_truncation_keeps_the_last_tokens(limit: int, max_tokens: int | None, kept: int) -> None:
    ids = list(range(10, 20))
    request = prepare(
        ids,
        SamplingParams(max_tokens=max_tokens),
        inputs=processor(max_model_len=20),
        truncate_prompt_tokens=limit,
    )
    assert request.prompt_token_ids == ids[-kept:]


@pytest.mark.parametrize(
    ("prompt", "params", "options", "param", "says"),
    [
        ("", {}, {}, "prompt", "at least one token"),
        ([], {}, {}, "prompt", "at least one token"),
        ([1, VOCAB_SIZE], {}, {}, "prompt", f"token id {VOCAB_SIZE}"),
        ([1, -1], {}, {}, "prompt", "token id -1"),
        ("a\ud800", {}, {}, "prompt", "surrogate"),
        ("a", {"stop_token_ids": [VOCAB_SIZE]}, {}, "stop_token_ids", str(VOCAB_SIZE)),
        ("a", {"logit_bias": {VOCAB_SIZE: 1.0}}, {}, "logit_bias", str(VOCAB_SIZE)),
        ("a", {"logprobs": VOCAB_SIZE + 1}, {}, "logprobs", str(VOCAB_SIZE)),
        ("a", {"prompt_logprobs": VOCAB_SIZE + 1}, {}, "prompt_logprobs", str(VOCAB_SIZE)),
        ("a", {"bad_words": ["x" * 257]}, {}, "bad_words", "256"),
        ("a", {}, {"priority": 1 << 63}, "priority", "64 bits"),
        ("a", {}, {"cache_salt": ""}, "cache_salt", "empty"),
        ("a", {}, {"timeout": 0.0}, "timeout", "above 0"),
        ("a", {}, {"timeout": math.nan}, "timeout", "above 0"),
        ("a", {}, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ("a", {}, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    prompt: str | list[int], params: dict[str, Any], options: dict[str, Any], param: str, says: str
) -> None:
    error = refusal(prompt, SamplingParams(**params), **options)
    assert error.param == param
    assert says in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 1 << 63),  # beyond 64 bits, which is what the engine has
        ("top_k", 1 << 31),
        ("top_k", 1.5),
        ("top_k", True),
        ("min_tokens", 1 << 70),
        ("n", 1 << 64),
        ("seed", 1 << 63),
        ("temperature", None),
        ("temperature", "1"),
        ("temperature", math.nan),
        ("repetition_penalty", 1e39),  # infinite in float32: logits would be NaN
        ("repetition_penalty", 1e-39),
        ("stop", "text"),
        ("stop", ["a", 3]),
        ("logit_bias", {"5": 1.0}),
        ("logit_bias", {5: "1"}),
        ("logprobs", 1.0),
        ("ignore_eos", 1),
    ],
)
def test_parameters_from_python_are_held_to_their_types_and_ranges(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=name) as caught:
        SamplingParams(max_tokens=None, **{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_prompt_beyond_the_context_is_refused(field: str) -> None:
    inputs = processor(max_model_len=20)
    error = refusal([5] * 20, inputs=inputs, prompt_field=field)
    assert (error.param, error.code) == (field, "context_length_exceeded")
    assert error.message.startswith("This model's maximum context length is 20 tokens. However, ")
    assert prepare([5] * 19, SamplingParams(max_tokens=1), inputs=inputs)


def test_prompt_and_max_tokens_must_fit_together() -> None:
    inputs = processor(max_model_len=20)
    error = refusal([5] * 10, SamplingParams(max_tokens=11), inputs=inputs)
    assert (error.param, error.code) == ("max_tokens", "context_length_exceeded")
    assert "21" in error.message
    assert prepare([5] * 10, SamplingParams(max_tokens=10), inputs=inputs)


def test_a_hopelessly_long_text_is_refused_without_tokenising_it() -> None:
    inputs = processor(max_model_len=20)

    def never(*_: Any) -> list[int]:
        raise AssertionError("tokenised")

    longest = inputs.longest_token
    encode, inputs._encode = inputs._encode, never  # type: ignore[method-assign]
    error = refusal("a" * (20 * longest + 1), inputs=inputs)
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    inputs._encode = encode  # type: ignore[method-assign]
    # The bound holds: no token stands for more. (In the byte alphabet a character is a byte.)
    assert longest == max(len(piece) for piece in tiny_text().tokenizer.raw.get_vocab())
