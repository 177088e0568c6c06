"""Log probabilities in the shapes of OpenAI and vLLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pellucid.frontend.outputs import Logprob
from pellucid.server.responses import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)

if TYPE_CHECKING:
    from pellucid.frontend.tokenizer import Tokenizer

FLOOR = -9999.0  # what OpenAI sends for "never": JSON has no -Infinity


def chat_logprobs(entries: Sequence[Logprob], *, as_ids: bool) -> ChatLogprobs:
    """`as_ids` names tokens "token_id:123", which is unambiguous where text is not."""
    return ChatLogprobs(
        [
            ChatLogprob(
                _name(entry, as_ids),
                _finite(entry.logprob),
                list(entry.bytes),
                [
                    TopLogprob(_name(top, as_ids), _finite(top.logprob), list(top.bytes))
                    for top in entry.top
                ],
            )
            for entry in entries
        ]
    )


def prompt_logprobs(entries: Sequence[Logprob | None]) -> PromptLogprobs:
    """Per prompt token its alternatives by id, itself among them; None for the first."""
    return [None if entry is None else _by_id(entry) for entry in entries]


class CompletionSpelling:
    """Spells the tokens of one choice and keeps count of where in its text each begins.

    The count goes by bytes, so that a character of several tokens is counted once.
    """

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool, hides_special: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._hides_special = hides_special
        self._offset = 0

    def prompt(
        self, token_ids: Sequence[int], entries: Sequence[Logprob | None], text: str
    ) -> CompletionLogprobs:
        """The part of an echoed prompt, whose text is `text`; its first token has no entry."""
        part = CompletionLogprobs([], [], [], [])
        for token_id, entry in zip(token_ids, entries, strict=True):
            name = self._tokenizer.token_text(token_id)
            special = token_id in self._tokenizer.special_ids
            # BOS is a token of the prompt, but no part of a text that the client wrote.
            shown = not special or text.startswith(name, self._offset)
            if entry is None:
                part.tokens.append(f"token_id:{token_id}" if self._as_ids else name)
                part.token_logprobs.append(None)
                part.top_logprobs.append(None)
                part.text_offset.append(self._offset)
                self._advance(self._tokenizer.token_bytes(token_id), shown)
            else:
                self._append(part, entry, shown)
        self._offset = len(text)
        return part

    def answer(self, entries: Sequence[Logprob]) -> CompletionLogprobs:
        """The part of newly generated tokens."""
        part = CompletionLogprobs([], [], [], [])
        for entry in entries:
            hidden = self._hides_special and entry.token_id in self._tokenizer.special_ids
            self._append(part, entry, not hidden)
        return part

    def _append(self, part: CompletionLogprobs, entry: Logprob, shown: bool) -> None:
        top: dict[str, float] = {}
        for candidate in (*entry.top, entry):  # of ids that share a name the likeliest counts
            top.setdefault(_name(candidate, self._as_ids), _finite(candidate.logprob))
        part.tokens.append(_name(entry, self._as_ids))
        part.token_logprobs.append(_finite(entry.logprob))
        part.top_logprobs.append(top)
        part.text_offset.append(self._offset)
        self._advance(entry.bytes, shown)

    def _advance(self, text: bytes, shown: bool) -> None:
        if shown:  # characters begin at every byte that does not continue one
            self._offset += sum(byte & 0xC0 != 0x80 for byte in text)


def joined(first: CompletionLogprobs, then: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        first.tokens + then.tokens,
        first.token_logprobs + then.token_logprobs,
        first.top_logprobs + then.top_logprobs,
        first.text_offset + then.text_offset,
    )


def _by_id(entry: Logprob) -> dict[str, PromptLogprob]:
    named = {
        str(top.token_id): PromptLogprob(_finite(top.logprob), rank, top.text)
        for rank, top in enumerate(entry.top, start=1)
    }
    named.setdefault(
        str(entry.token_id), PromptLogprob(_finite(entry.logprob), entry.rank, entry.text)
    )
    return named


def _name(entry: Logprob, as_ids: bool) -> str:
    return f"token_id:{entry.token_id}" if as_ids else entry.text


def _finite(logprob: float) -> float:
    return max(logprob, FLOOR) if not math.isnan(logprob) else FLOOR
