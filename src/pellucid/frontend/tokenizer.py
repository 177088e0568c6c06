"""Text to token ids and back, for every vocabulary we serve.

The splitting and merging is the `tokenizers` library's. What is ours: where a tokenizer comes from
(a Hugging Face folder here, GGUF metadata in `gguf_tokenizer.py`), and the exact bytes of each
token, from which all text leaves: `decode` here and the streamed text of `detokenizer.py` are the
same bytes read the same way, so they cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken

from pellucid.errors import BadRequest, ModelError

if TYPE_CHECKING:
    from pellucid.load.hub import ModelFiles

SPACE = "\u2581"  # SentencePiece writes a space as this block character
MAX_VOCAB_SIZE = 1 << 22  # ids need not be dense, and a table as long as the largest is kept
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """One model's vocabulary. Safe to share between threads.

    Attributes:
        raw: the `tokenizers.Tokenizer` that does the work.
        vocab_size: one more than the largest token id.
        special_ids: control tokens, which `skip_special_tokens` leaves out of text.
        special_tokens: what chat templates may name: "bos_token", "eos_token", ... to their text.
        bos_token_id: the token that `encode` may put first, None if the model has none.
        eos_token_ids: every token that ends an answer.
        chat_templates: the model's own Jinja templates by name; empty for base models.
        num_stripped_spaces: spaces dropped from the start of a decoded text, because `encode`
            put them there.
    """

    def __init__(
        self,
        raw: tokenizers.Tokenizer,
        *,
        vocab_size: int,
        special_tokens: Mapping[str, str],
        eos_token_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        self.raw = raw
        self.vocab_size = vocab_size
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates or {})
        self.special_ids = frozenset(
            token_id for token_id, token in raw.get_added_tokens_decoder().items() if token.special
        )
        bos = self.special_tokens.get("bos_token")
        self.bos_token_id: int | None = None if bos is None else raw.token_to_id(bos)
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        byte_level, self.num_stripped_spaces = _read_decoder(raw)
        spell = _byte_level_bytes if byte_level else _sentencepiece_bytes
        self._bytes = [spell(raw.id_to_token(i) or "") for i in range(vocab_size)]

    @property
    def chat_template(self) -> str | None:
        """The template for plain chats, None for a model without one."""
        return self.chat_templates.get("default")

    def encode(
        self, text: str, add_special_tokens: bool = True, *, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`.

        Args:
            add_special_tokens: put BOS (and EOS) around it, where the model was trained so.
            parse_special: read the text of a control token, such as `<|im_end|>`, as that token,
                as every engine does for prompts; False treats it as the plain text it is.

        Raises:
            BadRequest: the text holds half a surrogate pair, which no encoding can carry.
        """
        raw = self.raw if parse_special else self._raw_without_special
        try:
            # Unlike `encode` it lets other threads run meanwhile, and keeps no offsets.
            (encoded,) = raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError:  # also for text that UTF-8 cannot carry
            raise BadRequest(
                "the text holds a lone surrogate, which is not valid Unicode", param="prompt"
            ) from None
        ids: list[int] = encoded.ids
        return ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that are not UTF-8 become U+FFFD, unknown ids nothing."""
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        data = b"".join(self.token_bytes(i) for i in token_ids if i not in skipped)
        return strip_spaces(data.decode("utf-8", "replace"), self.num_stripped_spaces)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token adds to a text; empty for an id that means nothing.

        The embedding of a model may have more rows than its vocabulary has tokens.
        """
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def token_id(self, text: str) -> int | None:
        """The token of a marker, control token or not; None if that takes several."""
        return self.raw.token_to_id(text)

    def special_id(self, text: str) -> int | None:
        """The control token that is written `text`; None if that is plain text here."""
        token_id = self.token_id(text)
        return token_id if token_id in self.special_ids else None

    def token_text(self, token_id: int) -> str:
        """A token alone, for people to read: bytes that are not UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    @cached_property
    def _raw_without_special(self) -> tokenizers.Tokenizer:
        # A second copy: the switch lives in the tokenizer, and other threads may be encoding.
        copy = tokenizers.Tokenizer.from_str(self.raw.to_str())
        copy.encode_special_tokens = True
        return copy


def strip_spaces(text: str, count: int) -> str:
    """`text` without its first `count` characters as far as they are spaces."""
    while count and text.startswith(" "):
        text, count = text[1:], count - 1
    return text


# ---- the bytes of a token


def byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of bytes as printable characters (Radford et al. 2019, `encoder.py`).

    Printable Latin-1 bytes stand for themselves, the others for U+0100 and on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + i) for i, byte in enumerate(others)
    }


_LATIN1_OF_ALPHABET = {ord(char): byte for byte, char in byte_alphabet().items()}
# Characters of Latin-1 that spell no byte must not pass for one.
_LATIN1_OF_ALPHABET |= {char: 0xFFFD for char in range(256) if char not in _LATIN1_OF_ALPHABET}


def _byte_level_bytes(token: str) -> bytes:
    try:
        return token.translate(_LATIN1_OF_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()  # an added token, written as plain text


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(SPACE, " ").encode()


def _read_decoder(raw: tokenizers.Tokenizer) -> tuple[bool, int]:
    """Whether tokens are spelled in the byte alphabet, and how many spaces decoding strips.

    Raises ModelError for a decoder that is neither byte-level nor SentencePiece's.
    """
    state = {} if raw.decoder is None else json.loads(raw.decoder.__getstate__())
    steps = {step["type"]: step for step in state.get("decoders", [state] if state else [])}
    if steps.keys() == {"ByteLevel"}:
        return True, 0
    if steps.keys() <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "ByteFallback" in steps:
        return False, steps["Strip"]["start"] if "Strip" in steps else 0
    names = ", ".join(steps) or "none"
    raise ModelError(
        f"the tokenizer's decoder ({names}) is not supported: "
        "pellucid reads byte-level BPE and SentencePiece BPE with byte fallback"
    )


# ---- where a tokenizer comes from


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model on disk.

    Raises:
        ModelError: a file is missing or damaged, or of a kind that we do not know.
    """
    if files.kind == "gguf":
        from pellucid.frontend.gguf_tokenizer import tokenizer_from_gguf

        return tokenizer_from_gguf(files.gguf.metadata)
    return tokenizer_from_folder(files.path)


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json and the files that amend it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder.name}: no tokenizer.json; convert older vocabularies with transformers' "
            "AutoTokenizer.save_pretrained"
        )
    try:
        raw = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"tokenizer.json: {error}") from None
    raw.no_truncation()  # some files carry the settings of their training run
    raw.no_padding()

    settings = _read_json(folder / "tokenizer_config.json")
    names = _read_json(folder / "special_tokens_map.json") | settings
    special_tokens = {
        name: text for name in NAMED_TOKENS if (text := _token_text(names.get(name))) is not None
    }
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    extra = extra if isinstance(extra, list) else list(extra.values())
    control = [*special_tokens.values(), *filter(None, map(_token_text, extra))]
    marked = {t.content for t in raw.get_added_tokens_decoder().values() if t.special}
    raw.add_special_tokens([AddedToken(t, normalized=False) for t in control if t not in marked])
    vocab_size = max(raw.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if vocab_size > MAX_VOCAB_SIZE:
        raise ModelError(f"tokenizer.json: token id {vocab_size - 1} is beyond {MAX_VOCAB_SIZE}")
    return Tokenizer(
        raw,
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder, raw, special_tokens),
        chat_templates=_chat_templates(folder, settings),
    )


def _eos_token_ids(
    folder: Path, raw: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> set[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        if value is not None:
            found.update(value if isinstance(value, list) else [value])
            break
    eos = raw.token_to_id(special_tokens.get("eos_token", ""))
    return found if eos is None else found | {eos}


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Of tokenizer_config.json, or of the .jinja files that newer folders have instead."""
    source = settings.get("chat_template")
    found: dict[str, str] = {"default": source} if isinstance(source, str) else {}
    if isinstance(source, list):
        found = {t["name"]: t["template"] for t in source}
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    default = folder / "chat_template.jinja"
    if default.is_file():
        found["default"] = default.read_text(encoding="utf-8")
    return found


def _token_text(value: object) -> str | None:
    """A token in a configuration file: its text, or an object that holds it."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """An optional file's object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path.name}: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.name}: expected a JSON object")
    return value
