"""Tokenizers from GGUF metadata, against sentencepiece, transformers and a BPE written here."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer, Qwen2Tokenizer

from pellucid.errors import ModelError
from pellucid.frontend.gguf_tokenizer import tokenizer_from_gguf
from pellucid.frontend.tokenizer import Tokenizer, byte_alphabet
from pellucid.load.gguf import read_gguf

from .vocabularies import NASTY_TEXTS, byte_level, sentencepiece_metadata, sentencepiece_model

# The words of each family, as its authors publish them.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

texts = st.text(
    st.one_of(
        st.sampled_from("  \n\r\taeinrst'AE019=-.▁Ġ漢字かé😀\u0301٣"),
        st.characters(codec="utf-8", max_codepoint=0x2FFF, exclude_categories=["Cn", "Cs"]),
    ),
    max_size=40,
)


def split_words(pre: str, text: str) -> list[str]:
    if pre in ("gpt-2", "smollm"):
        runs = [text] if pre == "gpt-2" else regex.findall(r"\p{N}|[^\p{N}]+", text)
        return [word for run in runs for word in regex.findall(GPT2_WORDS, run)]
    pattern = {"llama-bpe": LLAMA3_WORDS, "qwen2": QWEN2_WORDS, "tekken": TEKKEN_WORDS}[pre]
    return regex.findall(pattern, unicodedata.normalize("NFC", text) if pre == "qwen2" else text)


def plain_bpe(metadata: dict[str, Any], text: str) -> list[int]:
    """Byte-level BPE by its definition: merge the best-ranked neighbours until there are none."""
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {
        tuple(merge.split(" ")): rank
        for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])
    }
    alphabet = byte_alphabet()
    pre = metadata["tokenizer.ggml.pre"]
    result = []
    for word in split_words(pre, text):
        parts = [alphabet[byte] for byte in word.encode()]
        if pre in ("llama-bpe", "tekken") and "".join(parts) in ids:
            parts = ["".join(parts)]
        while True:
            pairs = [
                (ranks[pair], i)
                for i in range(len(parts) - 1)
                if (pair := (parts[i], parts[i + 1])) in ranks
            ]
            if not pairs:
                break
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        result += [ids[part] for part in parts]
    return result


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def byte_level_pair(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Tokenizer]:
    metadata = byte_level(request.param)
    return metadata, tokenizer_from_gguf(metadata)


class TestByteLevel:
    @pytest.mark.parametrize("text", NASTY_TEXTS)
    def test_ids_are_those_of_plain_bpe(
        self, byte_level_pair: tuple[dict[str, Any], Tokenizer], text: str
    ) -> None:
        metadata, tokenizer = byte_level_pair
        expected = plain_bpe(metadata, text)
        assert tokenizer.encode(text, add_special_tokens=False, parse_special=False) == expected

    @given(texts)
    @settings(max_examples=200, deadline=None)
    def test_ids_of_random_texts(
        self, byte_level_pair: tuple[dict[str, Any], Tokenizer], text: str
    ) -> None:
        metadata, tokenizer = byte_level_pair
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert ids == plain_bpe(metadata, text)

    @given(texts)
    @settings(max_examples=100, deadline=None)
    def test_decoding_gives_the_text_back(
        self, byte_level_pair: tuple[dict[str, Any], Tokenizer], text: str
    ) -> None:
        metadata, tokenizer = byte_level_pair
        if metadata["tokenizer.ggml.pre"] == "qwen2":
            text = unicodedata.normalize("NFC", text)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    @pytest.mark.parametrize(
        ("pre", "reference"), [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)]
    )
    def test_transformers_agrees(self, pre: str, reference: type) -> None:
        metadata = byte_level(pre)
        tokens = metadata["tokenizer.ggml.tokens"]
        original = reference(
            vocab={token: i for i, token in enumerate(tokens) if token != "[PAD]"},
            merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        )
        tokenizer = tokenizer_from_gguf(metadata)
        for text in NASTY_TEXTS:
            ids = original(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.encode(text, add_special_tokens=False) == ids, text
            assert tokenizer.decode(ids) == original.decode(ids, skip_special_tokens=True)

    def test_a_word_that_is_a_token_is_taken_whole_where_merges_are_ignored(self) -> None:
        # "zq" is a token that no merge leads to.
        ids = {}
        for pre in ("llama-bpe", "qwen2"):
            metadata = byte_level(pre)
            metadata["tokenizer.ggml.tokens"][-2] = "zq"
            metadata["tokenizer.ggml.token_type"][-2] = 1
            tokenizer = tokenizer_from_gguf(metadata)
            ids[pre] = [tokenizer.token_text(i) for i in tokenizer.encode("zq", False)]
        assert ids == {"llama-bpe": ["zq"], "qwen2": ["z", "q"]}

    def test_bos_is_added_as_the_file_or_the_family_says(self) -> None:
        def starts_with_bos(metadata: dict[str, Any]) -> bool:
            tokenizer = tokenizer_from_gguf(metadata)
            assert tokenizer.bos_token_id not in tokenizer.encode("a", add_special_tokens=False)
            return tokenizer.encode("a")[0] == tokenizer.bos_token_id

        assert starts_with_bos(byte_level("llama-bpe"))
        assert not starts_with_bos(byte_level("llama-bpe", add_bos_token=False))
        assert not starts_with_bos(byte_level("smollm"))
        assert starts_with_bos(byte_level("smollm", add_bos_token=True))

    def test_eos_is_added_if_the_file_says(self) -> None:
        tokenizer = tokenizer_from_gguf(byte_level("gpt-2", add_eos_token=True))
        assert tokenizer.encode("a")[-1] in tokenizer.eos_token_ids

    def test_special_text_is_a_control_token_unless_told_otherwise(self) -> None:
        tokenizer = tokenizer_from_gguf(byte_level("smollm"))
        text = "<|im_start|>user<tool_call>"
        ids = tokenizer.encode(text)
        plain = tokenizer.encode(text, parse_special=False)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.special_ids.isdisjoint(plain)
        assert tokenizer.decode(plain) == text
        assert tokenizer.decode(ids) == "user<tool_call>"
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        # User-defined tokens are text: they are found in any case.
        assert ids[-1] == plain[-1] == tokenizer.raw.token_to_id("<tool_call>")

    def test_end_of_turn_tokens_end_an_answer_whatever_eos_is(self) -> None:
        metadata = byte_level("smollm")
        first_control = len(metadata["tokenizer.ggml.tokens"]) - 5
        metadata["tokenizer.ggml.eos_token_id"] = 0
        tokenizer = tokenizer_from_gguf(metadata)
        assert tokenizer.eos_token_ids == (0, first_control, first_control + 2)
        assert 0 in tokenizer.special_ids

    def test_rows_without_a_token_are_empty(self) -> None:
        tokenizer = tokenizer_from_gguf(byte_level("qwen2"))
        padding = tokenizer.vocab_size - 1
        assert tokenizer.decode([padding, padding + 100, -1]) == ""
        assert "[PAD]" not in [tokenizer.token_text(i) for i in tokenizer.encode("[PAD]")]

    def test_every_byte_has_a_token(self) -> None:
        tokenizer = tokenizer_from_gguf(byte_level("gpt-2"))
        single = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
        assert {bytes([byte]) for byte in range(256)} <= single


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def sentencepiece_pair(request: pytest.FixtureRequest) -> tuple[Any, Tokenizer, bool]:
    prefix = request.param
    user_defined = () if prefix else ("<div>", "\n", "\n\n", "  ", "   ", "    ", "ab")
    model = sentencepiece_model(prefix, user_defined)
    metadata = sentencepiece_metadata(model, prefix, user_defined)
    return model, tokenizer_from_gguf(metadata), prefix


class TestSentencePiece:
    @pytest.mark.parametrize("text", NASTY_TEXTS)
    def test_ids_are_those_of_sentencepiece(
        self, sentencepiece_pair: tuple[Any, Tokenizer, bool], text: str
    ) -> None:
        model, tokenizer, _ = sentencepiece_pair
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert ids == model.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == model.decode(ids)

    @given(
        st.text(
            st.one_of(st.sampled_from("  \n▁abdeinorst<iv>/漢é😀"), st.characters(codec="utf-8")),
            max_size=40,
        )
    )
    @settings(max_examples=300, deadline=None)
    def test_ids_of_random_texts(
        self, sentencepiece_pair: tuple[Any, Tokenizer, bool], text: str
    ) -> None:
        model, tokenizer, _ = sentencepiece_pair
        assert tokenizer.encode(text, False, parse_special=False) == model.encode(text)

    def test_bos_comes_first(self, sentencepiece_pair: tuple[Any, Tokenizer, bool]) -> None:
        model, tokenizer, _ = sentencepiece_pair
        assert tokenizer.encode("fox") == model.encode("fox", add_bos=True)

    def test_byte_tokens_are_bytes(self, sentencepiece_pair: tuple[Any, Tokenizer, bool]) -> None:
        model, tokenizer, _ = sentencepiece_pair
        spelled = {model.piece_to_id(f"<0x{byte:02X}>"): bytes([byte]) for byte in range(256)}
        assert {i: tokenizer.token_bytes(i) for i in spelled} == spelled
        # As plain text the same characters are no byte.
        assert tokenizer.encode("<0x41>", False) == model.encode("<0x41>")

    def test_control_tokens_are_found_in_a_text(
        self, sentencepiece_pair: tuple[Any, Tokenizer, bool]
    ) -> None:
        model, tokenizer, prefix = sentencepiece_pair
        ids = tokenizer.encode("fox</s>dog", add_special_tokens=False)
        # Every stretch of text starts with a space of its own, as in Llama's tokenizer.json.
        assert ids == [*model.encode("fox"), model.eos_id(), *model.encode("dog")]
        assert tokenizer.decode(ids) == ("fox dog" if prefix else "foxdog")

    def test_ids_that_the_file_does_not_name(self) -> None:
        model = sentencepiece_model(True)
        metadata = sentencepiece_metadata(model, True)
        for name in ("bos_token_id", "eos_token_id", "unknown_token_id", "add_space_prefix"):
            del metadata[f"tokenizer.ggml.{name}"]
        tokenizer = tokenizer_from_gguf(metadata)
        assert tokenizer.bos_token_id == model.bos_id()
        assert tokenizer.eos_token_ids == (model.eos_id(),)
        assert tokenizer.encode("fox") == model.encode("fox", add_bos=True)

    def test_phi3_swallows_space_behind_control_tokens(self) -> None:
        model = sentencepiece_model(True)
        metadata = sentencepiece_metadata(model, True) | {"general.architecture": "phi3"}
        tokenizer = tokenizer_from_gguf(metadata)
        assert tokenizer.encode("</s>\n fox", False) == [model.eos_id(), *model.encode("fox")]
        assert tokenizer.encode("<s>\nfox", False) == [model.bos_id(), *model.encode("\nfox")]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"model": "bert"}, "bert"),
            ({"pre": "no-such-pre"}, "no-such-pre"),
            ({"pre": None}, "tokenizer.ggml.pre"),
            ({"token_type": [1, 2, 3]}, "token_type has 3 entries"),
            ({"tokens": None}, "no tokenizer.ggml.tokens"),
            ({"merges": None}, "no tokenizer.ggml.merges"),
            ({"merges": ["zz yy"]}, "fit together"),
            ({"merges": ["ab"]}, "fit together"),
            ({"tokens": ["a" * 5000], "token_type": [1]}, "5000 characters"),
            ({"model": "llama"}, "no tokenizer.ggml.scores"),
        ],
    )
    def test_each_is_named(self, changes: dict[str, Any], named: str) -> None:
        metadata = byte_level(**({"pre": "gpt-2"} | changes))
        metadata = {key: value for key, value in metadata.items() if value is not None}
        with pytest.raises(ModelError, match=named):
            tokenizer_from_gguf(metadata)

    def test_gpt2_files_may_lack_the_pre_tokenizer(self) -> None:
        metadata = byte_level("gpt-2") | {"general.architecture": "gpt2"}
        del metadata["tokenizer.ggml.pre"]
        assert tokenizer_from_gguf(metadata).decode([0, 1]) == '!"'


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> tuple[dict[str, Any], Tokenizer]:
    metadata = read_gguf(smollm2_path).metadata
    return metadata, tokenizer_from_gguf(metadata)


@pytest.mark.model
class TestSmolLM2:
    def test_ids_are_those_of_plain_bpe(self, smollm2: tuple[dict[str, Any], Tokenizer]) -> None:
        metadata, tokenizer = smollm2
        text = "\n".join(NASTY_TEXTS) + Path(__file__).read_text(encoding="utf-8")[:3000]
        ids = tokenizer.encode(text, parse_special=False)
        assert ids == plain_bpe(metadata, text)
        assert tokenizer.decode(ids) == text

    def test_special_tokens(self, smollm2: tuple[dict[str, Any], Tokenizer]) -> None:
        _, tokenizer = smollm2
        assert tokenizer.vocab_size == 49152
        assert tokenizer.encode("<|im_start|>user") == [1, 4093]
        assert tokenizer.eos_token_ids == (0, 2)
        assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
        assert "<|im_start|>" in (tokenizer.chat_template or "")
