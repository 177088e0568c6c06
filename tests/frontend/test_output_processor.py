"""Tokens in, text out: whatever the steps' boundaries, the reader gets the same answer."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.frontend.output_processor import OutputProcessor, ProcessedStep
from pellucid.frontend.outputs import Delta
from pellucid.messages import AddRequest, RequestTimes, TokenDelta, TokenLogprobs, pack_tokens
from pellucid.sampling_params import SamplingParams
from tests.frontend.tiny import EOS, step, tiny_text

PROMPT = [70, 71]


class Reader:
    """One answer of an OutputProcessor, and all deltas it was given."""

    def __init__(self, **params: Any) -> None:
        self.processor = OutputProcessor(tiny_text().tokenizer)
        self.deltas: list[Delta] = []
        message = AddRequest(
            request_id="r",
            prompt=pack_tokens(PROMPT),
            sampling=SamplingParams(**{"max_tokens": 500, **params}),
            arrival_time=10.0,
        )
        self.processor.add(message, PROMPT, 0, self.deltas.append)

    def feed(self, token_ids: list[int], at: float = 11.0, **fields: Any) -> ProcessedStep:
        delta = TokenDelta(request_id="r", token_ids=token_ids, **fields)
        return self.processor.process(step(delta, at=at))

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]


def encode(text: str) -> list[int]:
    ids: list[int] = tiny_text().tokenizer.raw.encode(text).ids
    return ids


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Split `ids` into pieces of the given sizes, repeated as needed."""
    pieces, start, turn = [], 0, 0
    while start < len(ids):
        size = sizes[turn % len(sizes)]
        pieces.append(ids[start : start + size])
        start, turn = start + size, turn + 1
    return pieces


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40), sizes=SIZES)
def test_streamed_text_is_the_whole_text(text: str, sizes: list[int]) -> None:
    reader = Reader()
    ids = encode(text)
    for piece in cut(ids, sizes):
        reader.feed(piece)
        assert text.startswith(reader.text)
    reader.feed([EOS], finish_reason="stop")
    assert reader.text == text
    assert reader.token_ids == [*ids, EOS]
    assert reader.deltas[-1].finish_reason == "stop"
    assert "r" not in reader.processor


@settings(deadline=None, max_examples=150)
@given(
    text=st.text("ab. ", min_size=1, max_size=30),
    stop=st.text("ab. ", min_size=1, max_size=4),
    sizes=SIZES,
    include=st.booleans(),
)
def test_a_stop_string_ends_the_text_wherever_steps_are_cut(
    text: str, stop: str, sizes: list[int], include: bool
) -> None:
    reader = Reader(stop=[stop], include_stop_str_in_output=include)
    ids = encode(text)
    stopped: list[str] = []
    for piece in cut(ids, sizes):
        stopped += reader.feed(piece).stopped
    at = text.find(stop)
    if at >= 0:
        assert stopped == ["r"]  # told to the engine, once
        assert reader.text == text[: at + len(stop) if include else at]
        last = reader.deltas[-1]
        assert (last.finish_reason, last.stop_reason) == ("stop", stop)
        assert last.times is not None
        assert last.times.finished == 11.0
        return
    assert stopped == []
    reader.feed([], finish_reason="length")
    assert reader.text == text
    assert (reader.deltas[-1].finish_reason, reader.deltas[-1].stop_reason) == ("length", None)


def test_tokens_that_came_with_the_stop_are_reported() -> None:
    reader = Reader(stop=["time"])
    ids = encode("Once upon a time there was")
    reader.feed(ids)
    assert reader.text == "Once upon a "
    assert reader.token_ids == ids
    assert reader.feed([70], at=12.0).finished == []  # the engine was a step ahead
    assert len(reader.deltas) == 1


def test_a_stop_string_in_the_last_step_wins_over_length() -> None:
    reader = Reader(stop=["time"])
    done = reader.feed(encode("a time"), finish_reason="length", times=RequestTimes(arrival=10.0))
    assert (reader.deltas[-1].finish_reason, reader.deltas[-1].stop_reason) == ("stop", "time")
    assert done.stopped == []  # the engine has ended it itself
    assert reader.text == "a "


def test_what_may_become_a_stop_string_is_held_back_and_given_at_the_end() -> None:
    reader = Reader(stop=["time travel"])
    reader.feed(encode("a time"))
    assert reader.text == "a "
    reader.feed([], finish_reason="length")
    assert reader.text == "a time"


def test_stop_strings_are_not_searched_in_the_first_min_tokens() -> None:
    ids = encode("word and word and word")
    first_three = tiny_text().tokenizer.raw.decode(ids[:3])
    assert "word" in first_three
    for size in (1, 2, 50):
        reader = Reader(stop=["word"], min_tokens=3)
        for piece in cut(ids, [size]):
            reader.feed(piece)
        assert reader.text == "word and "
        assert reader.deltas[-1].stop_reason == "word"


def test_the_last_of_the_first_min_tokens_is_not_searched_and_the_next_one_is() -> None:
    ids = encode("word and word and word")
    assert tiny_text().tokenizer.raw.decode(ids[3:4]) == " word"
    for min_tokens, text in ((3, "word and"), (4, "word and word and"), (5, "word and word and")):
        for size in (1, 2, 50):
            reader = Reader(stop=[" word"], min_tokens=min_tokens)
            for piece in cut(ids, [size]):
                reader.feed(piece)
            assert reader.text == text


@pytest.mark.parametrize("include", [False, True])
def test_the_text_of_a_stop_token_is_shown_only_if_asked(include: bool) -> None:
    (dot,) = encode(".")
    reader = Reader(stop_token_ids=[dot], include_stop_str_in_output=include)
    reader.feed([*encode("word"), dot], finish_reason="stop", stop_token_id=dot)
    assert reader.text == ("word." if include else "word")
    assert reader.token_ids == [*encode("word"), dot]
    assert reader.deltas[-1].stop_reason == dot


def test_half_a_character_waits_for_its_other_half() -> None:
    ids = encode("🙃")
    assert len(ids) > 1, "the character must span tokens for this test to mean something"
    reader = Reader()
    for token in ids[:-1]:
        reader.feed([token])
        assert reader.text == ""
    reader.feed(ids[-1:])
    assert reader.text == "🙃"
    assert reader.token_ids == ids


def test_half_a_character_at_the_end_follows_what_was_held_back() -> None:
    reader = Reader(stop=["time travel"])
    reader.feed([*encode("a time"), *encode("🙃")[:-1]])
    reader.feed([], finish_reason="length")
    assert reader.text == "a time\ufffd"


def test_logprobs_come_with_text_and_bytes() -> None:
    (word,) = encode(" word")
    (a,) = encode("a")
    entry = TokenLogprobs(
        token_id=word, logprob=-0.5, rank=2, top_ids=[a, word], top_logprobs=[-0.1, -0.5]
    )
    reader = Reader(logprobs=2, prompt_logprobs=0)
    reader.feed([word], logprobs=[entry], prompt_logprobs=[None, entry])
    (delta,) = reader.deltas
    assert delta.logprobs is not None
    (shown,) = delta.logprobs
    assert (shown.token_id, shown.logprob, shown.rank) == (word, -0.5, 2)
    assert (shown.text, shown.bytes) == (" word", b" word")
    assert [(t.token_id, t.text, t.logprob, t.rank) for t in shown.top] == [
        (a, "a", -0.1, None),
        (word, " word", -0.5, None),
    ]
    assert delta.prompt_logprobs is not None
    assert delta.prompt_logprobs[0] is None
    assert delta.prompt_logprobs[1] is not None
    assert delta.prompt_logprobs[1].text == " word"


def test_logprobs_of_half_characters_have_exact_bytes() -> None:
    ids = encode("🙃")
    reader = Reader(logprobs=0)
    reader.feed(ids, logprobs=[TokenLogprobs(token_id=i, logprob=-1.0, rank=1) for i in ids])
    logprobs = reader.deltas[0].logprobs
    assert logprobs is not None
    assert b"".join(entry.bytes for entry in logprobs) == "🙃".encode()


def test_cached_tokens_are_told_on_every_delta() -> None:
    reader = Reader()
    reader.feed(encode("a"), num_cached_tokens=1)
    reader.feed(encode("b"), finish_reason="length")
    assert [delta.num_cached_tokens for delta in reader.deltas] == [1, 1]


def test_the_engines_times_and_error_are_passed_on() -> None:
    times = RequestTimes(arrival=10.0, scheduled=10.5, first_token=11.0, finished=12.0)
    reader = Reader()
    done = reader.feed([], finish_reason="error", error="no room", times=copy(times))
    (delta,) = reader.deltas
    assert (delta.finish_reason, delta.error, delta.times) == ("error", "no room", times)
    (report,) = done.finished
    assert (report.finish_reason, report.times) == ("error", times)


def test_finishing_from_this_side_gives_what_was_held_back_once() -> None:
    reader = Reader(stop=["time travel"])
    ids = encode("a time")
    reader.feed(ids)
    report = reader.processor.finish("r", "abort", 13.0)
    assert report is not None
    assert (report.finish_reason, report.num_output_tokens) == ("abort", len(ids))
    assert report.times == RequestTimes(arrival=10.0, first_token=11.0, finished=13.0)
    assert reader.text == "a time"
    assert reader.deltas[-1].finish_reason == "abort"
    assert reader.processor.finish("r", "abort", 14.0) is None
    assert len(reader.deltas) == 2


def test_reports_count_tokens_and_latencies() -> None:
    reader = Reader()
    one = reader.feed(encode("a"), at=12.0)
    two = reader.feed(encode("b"), at=12.5)
    last = reader.feed([EOS], at=13.5, finish_reason="stop", num_cached_tokens=1)
    assert one.report.times_to_first_token == [2.0]
    assert one.report.inter_token_latencies == []
    assert two.report.times_to_first_token == []
    assert two.report.inter_token_latencies == [0.5]
    assert last.report.inter_token_latencies == [1.0]
    (report,) = last.finished
    assert report.num_output_tokens == 3  # the end token counts: it was generated
    assert (report.num_prompt_tokens, report.num_cached_tokens) == (2, 1)


def test_an_end_without_a_token_is_no_latency() -> None:
    report = Reader().feed([], finish_reason="timeout").report
    assert (report.times_to_first_token, report.inter_token_latencies) == ([], [])


def test_trouble_with_one_answer_leaves_the_others_alone() -> None:
    reader = Reader()
    others: list[Delta] = []
    message = AddRequest(
        request_id="other",
        prompt=pack_tokens(PROMPT),
        sampling=SamplingParams(),
        arrival_time=10.0,
    )
    reader.processor.add(message, PROMPT, 0, others.append)
    broken = TokenLogprobs(token_id=5, logprob=0.0, rank=1, top_ids=[5], top_logprobs=[])
    done = reader.processor.process(
        step(
            TokenDelta(request_id="r", token_ids=[70], logprobs=[broken]),
            TokenDelta(request_id="other", token_ids=encode("a")),
        )
    )
    assert reader.deltas[-1].finish_reason == "error"
    assert done.stopped == ["r"]
    assert [delta.text for delta in others] == ["a"]
