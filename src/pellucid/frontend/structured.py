"""Checks what form an answer shall have before anything is queued, and writes it as a grammar.

A grammar that passes here compiles in the engine as well: it is the same compiler with the same
vocabulary. Compiling takes a thread of its own, so that streams go on meanwhile, and only one, so
that a flood of schemas cannot take the processors from the engine.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from pellucid.errors import BadRequest, Overloaded
from pellucid.grammar import source
from pellucid.grammar.compiler import GrammarCompiler
from pellucid.grammar.errors import GrammarError
from pellucid.messages import EngineInfo, Vocabulary, pack_tokens
from pellucid.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from pellucid.frontend.tokenizer import Tokenizer

COMPILE_SECONDS = 10.0  # waiting for the thread included; the compiler's own limits are far below


class GrammarChecker:
    """Writes grammars for one model and vouches for them."""

    def __init__(self, tokenizer: Tokenizer, info: EngineInfo) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._compiler: GrammarCompiler | None = None  # made by the first request that needs it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pellucid-grammar")

    async def check(self, wanted: StructuredOutputs | str, field: str) -> str:
        """The grammar for `wanted`, which may be one that was written by `grammar/source.py`.

        Raises:
            BadRequest: it is wrong, cannot be honoured in full, or takes too long; names `field`.
            Overloaded: others before it take too long.
        """
        loop = asyncio.get_running_loop()
        begun = threading.Event()

        def check() -> str:
            begun.set()
            return self._check(wanted)

        checked = loop.run_in_executor(self._thread, check)
        try:
            # Unlike a timeout this takes what is there, even if the process stood still meanwhile.
            await asyncio.wait({checked}, timeout=COMPILE_SECONDS)
            if checked.done():
                return checked.result()
            problem = f"{field} takes longer than {COMPILE_SECONDS:.0f} seconds to compile"
        except GrammarError as error:
            problem = f"{field} cannot be honoured: {error}"
        finally:
            checked.cancel()
        if not begun.is_set():
            raise Overloaded("Too many grammars wait to be compiled.", retry_after=COMPILE_SECONDS)
        raise BadRequest(problem, param=field, code="unsupported_grammar")

    @cached_property
    def _tokens(self) -> list[bytes]:
        """Tens of thousands: spelled by the first check, in its thread, not on the event loop."""
        return [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.vocab_size)]

    def vocabulary(self) -> Vocabulary:
        """What the engine has to know to follow grammars."""
        return Vocabulary(
            spelling=b"".join(self._tokens),
            lengths=pack_tokens(list(map(len, self._tokens))),
            special_ids=sorted(self._tokenizer.special_ids),
        )

    def _check(self, wanted: StructuredOutputs | str) -> str:
        text = wanted if isinstance(wanted, str) else source_of(wanted)
        if self._compiler is None:
            self._compiler = GrammarCompiler(
                self._tokens,
                sorted(self._tokenizer.special_ids),
                self._info.eos_token_ids,
                self._info.vocab_size,
            )
        self._compiler.compile(text)
        return text


def grammar_of_parts(thought: tuple[str, str], body: str, rules: str, answer: str | None) -> str:
    """A grammar for an answer with thoughts or tool calls in it.

    Args:
        thought: what stands before `body`, and its rules.
        body: the right side of a rule: `@answer`, and names from `rules`.
        answer: the grammar that `@answer` stands for. None: nowhere.

    Raises GrammarError if it is too long.
    """
    before, thought_rules = thought
    text = f"start: {before} body\nbody: {body}\n{thought_rules}{rules}"
    return source.from_grammar(text) if answer is None else source.with_preamble(text, answer)


def source_of(wanted: StructuredOutputs) -> str:
    """The grammar for `wanted`, unchecked. Raises GrammarError."""
    if wanted.json is not None:
        return source.from_json_schema(wanted.json)
    if wanted.regex is not None:
        return source.from_regex(wanted.regex)
    if wanted.choice is not None:
        return source.from_choice(wanted.choice)
    if wanted.grammar is not None:
        return source.from_grammar(wanted.grammar)
    return source.from_json_object()
