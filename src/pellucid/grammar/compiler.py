"""Grammars compiled for one vocabulary, and matchers that follow them, by llguidance.

The library gives the sets of allowed tokens. What is made sure of here is that nothing passes when
it gives up: it answers every error of its own with "only EOS may come", which would end an answer
in the middle and call it whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from pellucid.grammar.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher

Bitmask = NDArray[np.uint32]  # bit i % 32 of word i // 32 stands for token i

CACHE_SIZE = 128
MAX_MESSAGE_CHARS = 300
NO_TOKEN = "none of the model's tokens can come next"
MAX_ITEMS_IN_ROW = 20_000  # about four for each optional property that may come next


def bitmask_words(vocab_size: int) -> int:
    """Words of a row that holds a bit per token."""
    return -(-vocab_size // 32)


class Matcher:
    """Where one answer stands in its grammar; a function of the tokens it was given."""

    __slots__ = ("_matcher",)

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, row: Bitmask) -> None:
        """Write which tokens may come next into `row` [bitmask_words]; EOS where it may end.

        Raises:
            GrammarError: the grammar became too complex to follow at this place.
        """
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._check()

    def accept(self, token_ids: Sequence[int]) -> None:
        """Advance over tokens that were chosen. Raises GrammarError if one was not allowed."""
        for token in token_ids:
            self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher.get_error()))


class Grammar:
    """A compiled grammar, from which any number of answers start."""

    __slots__ = ("_template",)

    def __init__(self, template: LLMatcher) -> None:
        self._template = template

    def matcher(self, token_ids: Sequence[int] = ()) -> Matcher:
        """A new matcher, behind the tokens of an answer that has begun. Raises GrammarError."""
        matcher = Matcher(self._template.deep_copy())
        if token_ids:
            matcher.accept(token_ids)
        return matcher


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Not to be used by two threads at once.

    Args:
        tokens: the exact bytes of each token; ids from len(tokens) on are never allowed.
        special_ids: tokens that are no text, which only a grammar that names them allows.
        eos_token_ids: tokens that end an answer, allowed where the grammar may end.
        vocab_size: width of the model's logits.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        if not eos_token_ids:
            raise GrammarError("the model has no token that ends an answer")
        from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

        table = _TokenTable(tokens, special_ids, eos_token_ids, vocab_size)
        self._tokenizer = LLTokenizer(TokenizerWrapper(table), eos_token=list(eos_token_ids))
        self._limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS_IN_ROW,
            verbose_errors=False,  # errors are shown to whoever asked
        )
        self._scratch: Bitmask = np.zeros(bitmask_words(vocab_size), np.uint32)
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, source: str) -> Grammar:
        """The grammar of a text by `source.py`; the latest ones are kept.

        It takes from a millisecond to a second, without the GIL. Raises GrammarError.
        """
        grammar = self._compiled.get(source)
        if grammar is None:
            grammar = self._compiled[source] = self._compile(source)
            if len(self._compiled) > CACHE_SIZE:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(source)
        return grammar

    def _compile(self, source: str) -> Grammar:
        from llguidance import LLMatcher

        template = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if template.is_error():
            raise GrammarError(_reason(template.get_error()))
        grammar = Grammar(template)
        try:
            grammar.matcher().fill(self._scratch)  # also warms up what all its matchers share
        except GrammarError as error:
            if str(error) == NO_TOKEN:
                raise GrammarError("no text can match it") from None
            raise
        return grammar


class _TokenTable:
    """A vocabulary in the form that llguidance asks for."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        self.tokens = [*tokens[:vocab_size], *[b""] * (vocab_size - len(tokens))]
        self.special_token_ids = sorted({*special_ids, *eos_token_ids})
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None

    def __call__(self, text: str | bytes) -> NoReturn:
        # Only asked for text to force, which `source.py` switches off. An error fails the request.
        raise GrammarError("a grammar must not force text")


def lark_of_gbnf(grammar: str) -> str:
    """llama.cpp's GBNF rewritten as Lark. Raises GrammarError."""
    from llguidance import gbnf_to_lark

    try:
        return gbnf_to_lark.any_to_lark(grammar)
    except Exception as error:  # the converter has no error type that covers all it raises
        raise GrammarError(f"not valid GBNF: {error}") from None


def _reason(error: str) -> str:
    """The library's message without the grammar and its state, which it repeats below."""
    lines = error.partition("\n<")[0].strip().splitlines() or ["unknown reason"]
    if "NoExtension" in lines[0]:
        return NO_TOKEN
    place, _, reason = lines[0].rpartition("failed to compile JSON schema: ")
    # What is wrong with a regex comes below a drawing of the regex.
    details = [line for line in lines[1:] if line.startswith("error: ")]
    return " ".join([reason or place, *details])[:MAX_MESSAGE_CHARS]
