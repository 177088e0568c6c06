"""Tokenizers from Hugging Face folders, against transformers."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer

from pellucid.errors import BadRequest, ModelError
from pellucid.frontend.gguf_tokenizer import merges_from_scores, tokenizer_from_gguf
from pellucid.frontend.tokenizer import Tokenizer, tokenizer_from_folder

from .vocabularies import NASTY_TEXTS, byte_level, sentencepiece_metadata, sentencepiece_model


def byte_level_raw() -> RawTokenizer:
    """As in the folders of Llama 3."""
    metadata = byte_level("gpt-2")
    tokens = metadata["tokenizer.ggml.tokens"][:-5]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    raw = RawTokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+|[^\s\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|begin|>", "<|end|>", "<fim▁hole é>"])
    raw.add_tokens([AddedToken("<think>", normalized=False)])
    bos = [("<|begin|>", raw.token_to_id("<|begin|>"))]
    raw.post_processor = processors.TemplateProcessing(
        single=["<|begin|>", "$A"], special_tokens=bos
    )
    return raw


def sentencepiece_raw() -> RawTokenizer:
    """As in the folders of Llama 2."""
    metadata = sentencepiece_metadata(sentencepiece_model(True), True)
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
    merges = merges_from_scores({t: s for t, s in scores.items() if not t.startswith("<")})
    ids = {token: i for i, token in enumerate(tokens)}
    raw = RawTokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return raw


def write_folder(folder: Path, raw: RawTokenizer, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    raw.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(params=["byte-level", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "byte-level":
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin|>",
            "eos_token": {"__type": "AddedToken", "content": "<|end|>", "lstrip": False},
        }
        return write_folder(tmp_path / "model", byte_level_raw(), tokenizer_config=config)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    return write_folder(tmp_path / "model", sentencepiece_raw(), tokenizer_config=config)


class TestAgainstTransformers:
    def test_encode_and_decode(self, folder: Path) -> None:
        original = AutoTokenizer.from_pretrained(folder)
        tokenizer = tokenizer_from_folder(folder)
        extra = ["<|begin|>a<think>b<|end|> c", "x<fim▁hole é>y", "<s> a </s>b"]
        for text in NASTY_TEXTS + extra:
            for special in (True, False):
                ids = original(text, add_special_tokens=special)["input_ids"]
                assert tokenizer.encode(text, add_special_tokens=special) == ids, text
                assert tokenizer.decode(ids, special) == original.decode(
                    ids, skip_special_tokens=special
                )

    def test_every_token_alone(self, folder: Path) -> None:
        original = AutoTokenizer.from_pretrained(folder)
        tokenizer = tokenizer_from_folder(folder)
        assert tokenizer.vocab_size == len(original)
        assert tokenizer.special_ids == frozenset(original.all_special_ids) | {
            i for i, token in original.added_tokens_decoder.items() if token.special
        }
        assert tokenizer.bos_token_id == original.bos_token_id
        assert original.eos_token_id in tokenizer.eos_token_ids
        for i in range(tokenizer.vocab_size):
            assert tokenizer.decode([i], False) == original.decode([i])

    @pytest.mark.parametrize("add", [True, False])
    def test_tokenizer_json_alone_says_what_encode_adds(self, folder: Path, add: bool) -> None:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) | {"add_bos_token": add, "add_eos_token": add}
        path.write_text(json.dumps(config))
        original = AutoTokenizer.from_pretrained(folder)
        assert tokenizer_from_folder(folder).encode("a b") == original("a b")["input_ids"]

    def test_named_tokens_become_special(self, tmp_path: Path) -> None:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<think>",
            "additional_special_tokens": ["<extra>"],
        }
        folder = write_folder(tmp_path / "model", byte_level_raw(), tokenizer_config=config)
        original = AutoTokenizer.from_pretrained(folder)
        tokenizer = tokenizer_from_folder(folder)
        ids = original("a<extra>b<think>")["input_ids"]
        assert tokenizer.encode("a<extra>b<think>") == ids
        assert tokenizer.decode(ids) == original.decode(ids, skip_special_tokens=True) == "ab"


class TestFolder:
    def test_truncation_and_padding_of_the_file_are_off(self, tmp_path: Path) -> None:
        raw = byte_level_raw()
        raw.enable_truncation(3)
        raw.enable_padding(length=5)
        tokenizer = tokenizer_from_folder(write_folder(tmp_path / "model", raw))
        assert tokenizer.decode(tokenizer.encode("one two three four")) == "one two three four"
        assert len(tokenizer.encode("a")) == 2

    def test_eos_of_every_file_counts(self, tmp_path: Path) -> None:
        raw = byte_level_raw()
        end, begin = raw.token_to_id("<|end|>"), raw.token_to_id("<|begin|>")
        folder = write_folder(
            tmp_path / "model",
            raw,
            tokenizer_config={"eos_token": "<|end|>"},
            config={"eos_token_id": 5},
            generation_config={"eos_token_id": [begin]},
        )
        assert tokenizer_from_folder(folder).eos_token_ids == (begin, end)
        (folder / "generation_config.json").unlink()
        assert tokenizer_from_folder(folder).eos_token_ids == (5, end)

    def test_chat_templates(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
        write_folder(folder, byte_level_raw(), tokenizer_config={"chat_template": named})
        tokenizer = tokenizer_from_folder(folder)
        assert tokenizer.chat_templates == {"default": "A", "tool_use": "B"}
        assert tokenizer.chat_template == "A"
        write_folder(folder, byte_level_raw(), tokenizer_config={"chat_template": "C"})
        assert tokenizer_from_folder(folder).chat_templates == {"default": "C"}
        (folder / "chat_template.jinja").write_text("D")
        assert tokenizer_from_folder(folder).chat_template == "D"

    def test_a_folder_without_a_template(self, tmp_path: Path) -> None:
        assert tokenizer_from_folder(write_folder(tmp_path, byte_level_raw())).chat_template is None

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer.json", "{}", "tokenizer.json"),
            ("tokenizer.json", None, "no tokenizer.json"),
            ("tokenizer_config.json", "{", "tokenizer_config.json"),
            ("tokenizer_config.json", "[]", "expected a JSON object"),
        ],
    )
    def test_damaged_files_are_named(
        self, tmp_path: Path, name: str, content: str | None, message: str
    ) -> None:
        folder = write_folder(tmp_path / "model", byte_level_raw())
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content)
        with pytest.raises(ModelError, match=message):
            tokenizer_from_folder(folder)

    def test_an_absurd_token_id_is_refused(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model", byte_level_raw())
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["vocab"]["far away"] = 4_000_000_000
        (folder / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ModelError, match="token id 4000000000"):
            tokenizer_from_folder(folder)

    def test_an_unknown_decoder_is_refused(self, tmp_path: Path) -> None:
        raw = byte_level_raw()
        raw.decoder = decoders.WordPiece()
        with pytest.raises(ModelError, match="WordPiece"):
            tokenizer_from_folder(write_folder(tmp_path, raw))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_from_gguf(byte_level("smollm"))


class TestTokenizer:
    def test_half_a_surrogate_pair_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(BadRequest, match="surrogate") as caught:
            tokenizer.encode("a\ud800b")
        assert caught.value.param == "prompt"

    def test_bytes_of_tokens_spell_the_text(self, tokenizer: Tokenizer) -> None:
        for text in NASTY_TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()

    def test_invalid_bytes_are_replaced(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("日", add_special_tokens=False)[:1]
        assert tokenizer.token_bytes(ids[0]) == "日".encode()[: len(tokenizer.token_bytes(ids[0]))]
        assert tokenizer.decode(ids) == tokenizer.token_text(ids[0]) == "\ufffd"

    def test_other_threads_run_while_a_long_text_is_encoded(self, tokenizer: Tokenizer) -> None:
        encoding = threading.Thread(target=tokenizer.encode, args=("1 é" * 200_000,))
        encoding.start()
        num_turns = 0
        while encoding.is_alive():
            time.sleep(0.001)
            num_turns += 1
        assert num_turns > 5  # one or two if the interpreter stood still

    def test_threads_share_a_tokenizer(self, tokenizer: Tokenizer) -> None:
        text = "<|im_start|>" + NASTY_TEXTS[11]
        expected = {special: tokenizer.encode(text, parse_special=special) for special in (0, 1)}
        wrong: list[bool] = []

        def work(special: bool) -> None:
            for _ in range(200):
                if tokenizer.encode(text, parse_special=special) != expected[special]:
                    wrong.append(special)

        threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert expected[False] != expected[True]
        assert not wrong

    def test_text_needs_no_torch(self) -> None:
        code = (
            "import sys, pellucid.frontend.chat_template, pellucid.frontend.detokenizer, "
            "pellucid.frontend.gguf_tokenizer; sys.exit('torch' in sys.modules)"
        )
        assert run([sys.executable, "-c", code], check=False).returncode == 0
