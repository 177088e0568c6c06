"""Small vocabularies trained on the spot, as GGUF metadata, and texts that break tokenizers."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pellucid.frontend.gguf_tokenizer import TokenType

TRAINING_TEXT = (
    "The quick brown fox jumps over the lazy dog. It's what they'll say: we've won, I'd think. "
    "Größe, naïve café, 東京タワー, 🙂🙃👍🏽 and Привет мир! 0123456789 12345 3.14159 "
    "def f(x):\n    if x >= 10:\n        return x ** 2\n\n\treturn [x for x in range(100)]\n"
    "aaaa bbbb      spaces\t\ttabs\n\n\nlines"
)

NASTY_TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces   three    four     five",
    "a" * 300,
    "=" * 40 + " " * 40 + "\n" * 40,
    "tabs\tand\r\nline\nends\r",
    "123 1234567 3.14 1e-9 ①②③ ٣٤٥ ²³ Ⅷ",
    "it's IT'S we'll WE'LL I'd 'tis y'all'd've",
    "def f(x):\n    return {'a': x[0] ** 2}  # comment\n",
    "Größe naïve cafe\u0301 ÅÅ ﬁ",
    "日本語のテキスト、汉字。한국어 텍스트",
    "Привет ελληνικά עברית العربية हिन्दी ไทย",
    "🙂🙃👍🏽👨‍👩‍👧‍👦🇩🇪 \ufe0f",
    "\x00\x01\x1b\x7f\u0085\u00a0\u200b\u2028\ufeff\ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|></s><s><unk><0x41>",
    "▁already▁ ▁ blocks Ġ and Ċ",
    "mixedЖЩwordsと漢字123abc",
    "\U0001d54a\U0001d555 \U00020000 \U0010ffff \ue000",
]


@lru_cache(maxsize=1)
def _byte_level_parts() -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(
        [TRAINING_TEXT],
        trainers.BpeTrainer(
            vocab_size=600,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(raw.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_level(pre: str | None, **settings: Any) -> dict[str, Any]:
    """Metadata of a byte-level BPE with a few control tokens and one user-defined token."""
    vocab, merges = _byte_level_parts()
    tokens = sorted(vocab, key=vocab.__getitem__)
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL] * len(control)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *control, "<tool_call>", "[PAD]"],
        "tokenizer.ggml.token_type": [*types, TokenType.USER_DEFINED, TokenType.UNUSED],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
        "tokenizer.ggml.padding_token_id": len(tokens),
    } | {f"tokenizer.ggml.{key}": value for key, value in settings.items()}


@lru_cache(maxsize=4)
def sentencepiece_model(
    add_dummy_prefix: bool, user_defined: tuple[str, ...] = ()
) -> sentencepiece.SentencePieceProcessor:
    """A BPE model as Llama's and Gemma's are: byte fallback, no normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=450,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        add_dummy_prefix=add_dummy_prefix,
        user_defined_symbols=[text.replace(" ", "▁") for text in user_defined],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(
    model: sentencepiece.SentencePieceProcessor,
    add_dummy_prefix: bool,
    user_defined: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What a converter to GGUF writes for `model`."""

    def kind(token_id: int) -> TokenType:
        if model.is_unknown(token_id):
            return TokenType.UNKNOWN
        if model.is_control(token_id):
            return TokenType.CONTROL
        if model.is_byte(token_id):
            return TokenType.BYTE
        text = model.id_to_piece(token_id).replace("▁", " ")
        return TokenType.USER_DEFINED if text in user_defined else TokenType.NORMAL

    ids = range(model.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            model.id_to_piece(i).replace("▁", " ")
            if kind(i) == TokenType.USER_DEFINED
            else model.id_to_piece(i)
            for i in ids
        ],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [int(kind(i)) for i in ids],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": add_dummy_prefix,
    }
