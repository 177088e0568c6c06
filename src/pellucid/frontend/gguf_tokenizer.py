"""A tokenizer from the metadata of a GGUF file, which holds the vocabulary but not the code.

Two kinds exist among the models we run. "gpt2" is byte-level BPE: a regular expression cuts the
text into words, named by `tokenizer.ggml.pre`, and a list of merges rebuilds tokens from bytes.
"llama" is SentencePiece BPE (Kudo and Richardson 2018): no words, and each piece has a score; two
neighbours merge if their concatenation is a piece, best score first, leftmost first among equals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from pellucid.errors import ModelError
from pellucid.frontend.tokenizer import SPACE, Tokenizer

PREFIX = "tokenizer.ggml."
# Chat models end a turn with one of these, whatever the file calls its EOS token.
END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"}
)
MAX_TOKEN_CHARS = 4096
_NAMED_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_SENTENCEPIECE_IDS = {"unk_token": 0, "bos_token": 1, "eos_token": 2}  # where the file is silent
_PHI3_PLAIN = frozenset({"<unk>", "<s>", "<|endoftext|>"})


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, SentencePiece's piece types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Pre:
    """How one family of byte-level models prepares a text."""

    split: str | None = None  # None: GPT-2's own pattern, built into ByteLevel
    split_digits: bool = False  # each digit is a word of its own, before the pattern applies
    nfc: bool = False  # compose characters first
    ignore_merges: bool = False  # a word that is a token is taken whole
    add_bos: bool = False  # unless the file says


def _cl100k(digits: str) -> str:
    """The pattern of tiktoken's cl100k_base, by how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + "|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_GPT2 = _Pre()
_LLAMA3 = _Pre(split=_cl100k(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
_QWEN2 = _Pre(split=_cl100k(r"\p{N}"), nfc=True)
_STARCODER = _Pre(split_digits=True)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = _Pre(
    split=rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ignore_merges=True,
    add_bos=True,
)
_PRE = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,  # Mistral Nemo
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that `tokenizer.*` of a GGUF file's metadata describes.

    Raises:
        ModelError: a key is missing or inconsistent, or the vocabulary is of a kind (model, pre)
            that we do not know; the message names it.
    """
    kind = metadata.get(PREFIX + "model")
    builder = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(kind))
    if builder is None:
        raise ModelError(
            f"tokenizer.ggml.model {kind!r} is not supported: "
            "pellucid reads gpt2 (byte-level BPE) and llama (SentencePiece BPE)"
        )
    try:
        vocab = _Vocab(metadata)
        raw = builder(vocab)
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"the vocabulary does not fit together: {error}") from None
    return Tokenizer(
        raw,
        vocab_size=len(vocab.tokens),
        special_tokens=vocab.named,
        eos_token_ids=vocab.end_ids(),
        chat_templates=_chat_templates(metadata),
    )


class _Vocab:
    """The arrays of the metadata, checked against each other."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.tokens: list[str] = list(self.array("tokens"))
        size = len(self.tokens)
        if PREFIX + "token_type" in metadata:
            self.types = [int(t) for t in self.array("token_type", size)]
        else:
            self.types = [int(TokenType.NORMAL)] * size
        longest = max(map(len, self.tokens), default=0)
        if longest > MAX_TOKEN_CHARS:
            raise ModelError(f"a token has {longest} characters, more than {MAX_TOKEN_CHARS}")
        defaults = _SENTENCEPIECE_IDS if self.get("model") == "llama" else {}
        self.named = {
            name: self.tokens[token_id]
            for name, key in _NAMED_IDS.items()
            if (token_id := self.token_id(key, defaults.get(name))) is not None
        }

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(PREFIX + key, default)

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """The token id under `key`; None if the file has none, or one outside the vocabulary."""
        value = self.get(key, default)
        return value if value is not None and 0 <= value < len(self.tokens) else None

    def array(self, key: str, size: int | None = None) -> Sequence[Any]:
        values = self.get(key)
        if values is None:
            raise ModelError(f"the file has no {PREFIX}{key}")
        if size is not None and len(values) != size:
            raise ModelError(f"{PREFIX}{key} has {len(values)} entries for {size} tokens")
        items: Sequence[Any] = values.tolist() if hasattr(values, "tolist") else values
        return items

    def of_type(self, *types: TokenType) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def ids(self) -> dict[str, int]:
        """Token to id. Padding of the embedding (type unused) is left out: it has no text."""
        return {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind != TokenType.UNUSED
        }

    def control(self) -> list[str]:
        """Tokens that are not text. BOS and EOS are among them, however the file marks them."""
        named = [self.named[name] for name in ("bos_token", "eos_token") if name in self.named]
        return list(dict.fromkeys(self.of_type(TokenType.CONTROL, TokenType.UNKNOWN) + named))

    def end_ids(self) -> set[int]:
        """Every token that ends an answer."""
        named = {self.token_id("eot_token_id"), self.token_id("eom_token_id")}
        named.add(self.ids().get(self.named.get("eos_token", "")))
        marked = (TokenType.CONTROL, TokenType.USER_DEFINED)
        return {i for i in named if i is not None} | {
            i
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in marked and token in END_OF_TURN
        }


def _byte_level(vocab: _Vocab) -> tokenizers.Tokenizer:
    # GPT-2 files may be older than the key.
    gpt2 = vocab.metadata.get("general.architecture") == "gpt2"
    name = vocab.get("pre", "gpt-2" if gpt2 else None)
    pre = _PRE.get(name)
    if pre is None:
        raise ModelError(
            f"tokenizer.ggml.pre {name!r} is not supported: pellucid knows {', '.join(_PRE)}"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in vocab.array("merges")]
    raw = tokenizers.Tokenizer(models.BPE(vocab.ids(), merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        raw.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre.split_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    raw.pre_tokenizer = pre_tokenizers.Sequence(steps)
    raw.decoder = decoders.ByteLevel()
    _add_tokens(raw, vocab)
    _add_frame(raw, vocab, add_bos=pre.add_bos)
    return raw


def _sentencepiece(vocab: _Vocab) -> tokenizers.Tokenizer:
    scores = vocab.array("scores", len(vocab.tokens))
    pieces = {
        token: score
        for token, score, kind in zip(vocab.tokens, scores, vocab.types, strict=True)
        if kind == TokenType.NORMAL
    }
    add_prefix = bool(vocab.get("add_space_prefix", True))
    raw = tokenizers.Tokenizer(
        models.BPE(
            vocab.ids(),
            merges_from_scores(pieces),
            unk_token=vocab.named.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_block = normalizers.Replace(" ", SPACE)
    from_block = decoders.Replace(SPACE, " ")
    steps = [from_block, decoders.ByteFallback(), decoders.Fuse()]
    if add_prefix:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_block])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        raw.normalizer = to_block
    raw.decoder = decoders.Sequence(steps)
    _add_tokens(raw, vocab)
    _add_frame(raw, vocab, add_bos=True)
    return raw


def merges_from_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Ranked merges that act as SentencePiece's scores do.

    Every way to cut a piece into two pieces is a merge, ranked by the score of the result. Equal
    scores, as runs of spaces have, mean leftmost first: ranking the longest left half first does
    the same, as the run that has begun to grow at the left goes on growing.
    """
    ranked = sorted(
        (-score, -cut, piece)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    )
    return [(piece[:-minus_cut], piece[-minus_cut:]) for _, minus_cut, piece in ranked]


def _add_tokens(raw: tokenizers.Tokenizer, vocab: _Vocab) -> None:
    """Tokens that are found in the text before anything is split or merged."""
    # Phi-3's control tokens swallow the white space behind them, which GGUF cannot say.
    phi3 = vocab.metadata.get("general.architecture") == "phi3"
    raw.add_special_tokens(
        [
            AddedToken(token, normalized=False, rstrip=phi3 and token not in _PHI3_PLAIN)
            for token in vocab.control()
        ]
    )
    # Runs of spaces are looked for where spaces are written as blocks already; but not behind a
    # prefix, which would become part of what is looked for.
    written = isinstance(raw.normalizer, normalizers.Replace)
    user_defined = set(vocab.of_type(TokenType.USER_DEFINED)).difference(vocab.control())
    raw.add_tokens([AddedToken(t, special=False, normalized=written) for t in sorted(user_defined)])


def _add_frame(raw: tokenizers.Tokenizer, vocab: _Vocab, *, add_bos: bool) -> None:
    """Let `encode` add BOS before a text and EOS behind it, as the file or the family says."""
    bos = vocab.named.get("bos_token") if vocab.get("add_bos_token", add_bos) else None
    eos = vocab.named.get("eos_token") if vocab.get("add_eos_token", False) else None
    ends = [token for token in (bos, eos) if token is not None]
    raw.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        special_tokens=[(token, raw.token_to_id(token)) for token in ends],
    )


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    named = {
        name.removeprefix(key + "."): source
        for name, source in metadata.items()
        if name.startswith(key + ".")
    }
    return named | ({"default": metadata[key]} if metadata.get(key) else {})
