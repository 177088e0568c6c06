"""Streamed text against whole decodes, and stop strings against a search of the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.frontend.detokenizer import Detokenizer, StopChecker
from pellucid.frontend.gguf_tokenizer import tokenizer_from_gguf
from pellucid.frontend.tokenizer import Tokenizer
from pellucid.sampling_params import SamplingParams

from .vocabularies import NASTY_TEXTS, byte_level, sentencepiece_metadata, sentencepiece_model

BYTE_LEVEL = tokenizer_from_gguf(byte_level("smollm"))
SENTENCEPIECE = tokenizer_from_gguf(sentencepiece_metadata(sentencepiece_model(True), True))
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"]
)
REPLACEMENT = "\ufffd"


def stream(
    tokenizer: Tokenizer,
    ids: list[int],
    prompt: list[int] | None = None,
    *,
    chunk: int = 1,
    skip_special_tokens: bool = True,
) -> list[str]:
    """What is emitted for each chunk, and at the end."""
    params = SamplingParams(skip_special_tokens=skip_special_tokens)
    detokenizer = Detokenizer(tokenizer, params, prompt or [])
    pieces = [detokenizer.push(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    return [*pieces, detokenizer.finish()]


class TestDetokenizer:
    @TOKENIZERS
    @pytest.mark.parametrize("text", NASTY_TEXTS)
    def test_pieces_are_the_text(self, tokenizer: Tokenizer, text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        expected = tokenizer.raw.decode(ids)  # the library's own
        for chunk in (1, 2, 7):
            assert "".join(stream(tokenizer, ids, chunk=chunk)) == expected

    @TOKENIZERS
    @given(data=st.data())
    @settings(max_examples=200, deadline=None)
    def test_random_ids_stream_as_they_decode(
        self, tokenizer: Tokenizer, data: st.DataObject
    ) -> None:
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
        chunk = data.draw(st.integers(1, 5))
        skip = data.draw(st.booleans())
        text = "".join(stream(tokenizer, ids, chunk=chunk, skip_special_tokens=skip))
        assert text == tokenizer.decode(ids, skip)
        if tokenizer is BYTE_LEVEL:
            assert text == tokenizer.raw.decode(ids, skip_special_tokens=skip)

    @TOKENIZERS
    @given(data=st.data())
    @settings(max_examples=200, deadline=None)
    def test_an_answer_is_what_it_adds_to_the_prompt(
        self, tokenizer: Tokenizer, data: st.DataObject
    ) -> None:
        some_text = st.text(st.sampled_from(" \naeé漢😀fox"), max_size=12)
        prompt = tokenizer.encode(data.draw(some_text))
        answer = tokenizer.encode(data.draw(some_text), add_special_tokens=False)
        skip = data.draw(st.booleans())
        before = tokenizer.decode(prompt, skip)
        whole = tokenizer.decode(prompt + answer, skip)
        text = "".join(stream(tokenizer, answer, prompt, skip_special_tokens=skip))
        assert before + text == whole

    def test_the_first_word_keeps_its_space_behind_a_prompt(self) -> None:
        word = SENTENCEPIECE.encode("fox", add_special_tokens=False)
        bos = [SENTENCEPIECE.bos_token_id or 0]
        assert "".join(stream(SENTENCEPIECE, word, bos + word)) == " fox"
        assert "".join(stream(SENTENCEPIECE, word, bos)) == "fox"
        assert "".join(stream(SENTENCEPIECE, word, [])) == "fox"
        # Shown, BOS is text, and the word no longer the first.
        assert "".join(stream(SENTENCEPIECE, word, bos, skip_special_tokens=False)) == " fox"

    @TOKENIZERS
    def test_half_characters_are_held_back(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("a👨é", add_special_tokens=False)
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == "a👨é"
        assert "" in pieces[1:-2]
        assert not any(REPLACEMENT in piece for piece in pieces)

    @TOKENIZERS
    def test_a_character_never_completed_ends_as_a_replacement(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("a👨", add_special_tokens=False)[:-1]
        *pieces, last = stream(tokenizer, ids)
        assert "".join(pieces) == "a"
        assert last == REPLACEMENT

    def test_a_replacement_character_of_the_model_is_not_held_back(self) -> None:
        ids = BYTE_LEVEL.encode(REPLACEMENT, add_special_tokens=False)
        *pieces, last = stream(BYTE_LEVEL, ids)
        assert ("".join(pieces), last) == (REPLACEMENT, "")

    def test_text_goes_on_after_invalid_bytes(self) -> None:
        broken = BYTE_LEVEL.encode("漢", add_special_tokens=False)[:1]
        ids = broken * 3 + BYTE_LEVEL.encode("ok", add_special_tokens=False)
        assert "".join(stream(BYTE_LEVEL, ids)) == REPLACEMENT * 3 + "ok"

    def test_an_answer_completes_the_character_that_a_prompt_began(self) -> None:
        ids = BYTE_LEVEL.encode("x👨y", add_special_tokens=False)
        cut = 3
        assert BYTE_LEVEL.decode(ids[:cut]).endswith(REPLACEMENT)
        assert "".join(stream(BYTE_LEVEL, ids[cut:], ids[:cut])) == "👨y"
        # Left unfinished, it is the prompt's: the answer does not begin with it.
        other = BYTE_LEVEL.encode("y", add_special_tokens=False)
        assert "".join(stream(BYTE_LEVEL, other, ids[:cut])) == "y"
        assert "".join(stream(BYTE_LEVEL, [], ids[:cut])) == ""
        assert "".join(stream(BYTE_LEVEL, [ids[2], *other], ids[:2])) == "y"
        own = BYTE_LEVEL.encode("y" + REPLACEMENT, add_special_tokens=False)
        assert "".join(stream(BYTE_LEVEL, own, ids[:cut])) == "y" + REPLACEMENT

    def test_a_special_token_that_is_not_shown_is_no_beginning_of_the_text(self) -> None:
        (special, *_) = sorted(SENTENCEPIECE.special_ids)
        ids = SENTENCEPIECE.encode("word", add_special_tokens=False)
        assert "".join(stream(SENTENCEPIECE, [special, *ids])) == "word"

    def test_special_tokens_are_shown_on_demand(self) -> None:
        ids = BYTE_LEVEL.encode("<|im_start|><|im_end|>a<|im_end|>")
        assert "".join(stream(BYTE_LEVEL, ids)) == "a"
        shown = "".join(stream(BYTE_LEVEL, ids, skip_special_tokens=False))
        assert shown == "<|im_start|><|im_end|>a<|im_end|>"


def first_stop(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """The cut by its definition: the stop string that is complete first, the longest if several."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def push_all(
    text: str, stop: list[str], cuts: list[int], include: bool = False
) -> tuple[list[str], str | None]:
    checker = StopChecker(stop, include)
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    shown = []
    for start, end in itertools.pairwise(bounds):
        piece, matched = checker.push(text[start:end])
        shown.append(piece)
        if matched is not None:
            return shown, matched
    return [*shown, checker.flush()], None


class TestStopChecker:
    @given(
        text=st.text("abé", max_size=30),
        stop=st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=4),
        cuts=st.lists(st.integers(0, 40), max_size=12),
        include=st.booleans(),
    )
    @settings(max_examples=1000, deadline=None)
    def test_equals_a_search_of_the_whole_text(
        self, text: str, stop: list[str], cuts: list[int], include: bool
    ) -> None:
        pieces, matched = push_all(text, stop, cuts, include)
        assert ("".join(pieces), matched) == first_stop(text, stop, include)

    @given(text=st.text("ab", max_size=20), stop=st.lists(st.text("ab", min_size=1), min_size=1))
    @settings(max_examples=300, deadline=None)
    def test_holds_back_no_more_than_may_be_a_stop_string(self, text: str, stop: list[str]) -> None:
        checker = StopChecker(stop)
        shown = ""
        for end, char in enumerate(text, start=1):
            piece, matched = checker.push(char)
            shown += piece
            if matched:
                return
            starts = {s[:n] for s in stop for n in range(1, len(s))}
            held = max((n for n in range(end + 1) if text[end - n : end] in starts), default=0)
            assert shown == text[: end - held]

    @pytest.mark.parametrize(
        ("pieces", "stop", "shown", "matched"),
        [
            (["Hello", "\n\nUser", ":"], ["\n\nUser:"], "Hello", "\n\nUser:"),
            (["aab"], ["ab"], "a", "ab"),
            (["a", "a", "a", "b"], ["aab"], "a", "aab"),
            (["xyz"], ["z", "yz"], "x", "yz"),
            (["x", "y", "z"], ["xyzz", "y"], "x", "y"),
            (["日", "本"], ["本"], "日", "本"),
            (["END of", " END."], ["END."], "END of ", "END."),
            (["no stop"], ["stops"], "no stop", None),
        ],
    )
    def test_examples(
        self, pieces: list[str], stop: list[str], shown: str, matched: str | None
    ) -> None:
        checker = StopChecker(stop)
        result, found = "", None
        for piece in pieces:
            text, found = checker.push(piece)
            result += text
        assert (result + checker.flush(), found) == (shown, matched)

    def test_the_stop_string_itself_on_demand(self) -> None:
        checker = StopChecker(["STOP"], include=True)
        assert checker.push("a ST") == ("a ", None)
        assert checker.push("OP here") == ("STOP", "STOP")
        assert checker.flush() == ""
        assert checker.push("STOP again") == ("", "STOP")

    def test_a_long_stop_string_costs_no_more_per_character(self) -> None:
        # The text keeps falling back one place; comparing anew each time would take minutes.
        size = 100_000
        checker = StopChecker(["a" * size + "b"])
        held = sum(len(checker.push("a" * 100)[0]) for _ in range(4 * size // 100))
        assert held == 3 * size
