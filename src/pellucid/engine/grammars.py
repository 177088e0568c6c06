"""Grammars for the engine: compiled in a thread while other requests go on.

The front end has compiled each of them already and refuses what does not compile, so a failure here
is rare; it ends the request, which never runs without its grammar.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pellucid.messages import EngineInfo, Vocabulary

if TYPE_CHECKING:
    from pellucid.grammar.compiler import Grammar, GrammarCompiler

GRAMMAR_POLL = 0.001  # seconds: how late an idle engine may notice that a grammar was compiled


class GrammarQueue:
    """Which requests wait for which grammar."""

    def __init__(self, info: EngineInfo) -> None:
        self._info = info
        self._thread: ThreadPoolExecutor | None = None
        self._compiler: GrammarCompiler | None = None  # the thread's
        self._pending: dict[str, Future[Grammar]] = {}  # by request

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._pending)

    @property
    def has_ready(self) -> bool:
        """Whether `take_ready` would return something."""
        return any(future.done() for future in self._pending.values())

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the model's vocabulary; it comes before the first request with a grammar."""
        self._executor().submit(self._make_compiler, vocabulary)

    def request(self, request_id: str, source: str) -> None:
        """Have a grammar compiled for a request."""
        self._pending[request_id] = self._executor().submit(self._compile, source)

    def forget(self, request_ids: Iterable[str]) -> None:
        """These requests are gone."""
        for request_id in request_ids:
            future = self._pending.pop(request_id, None)
            if future is not None:
                future.cancel()

    def take_ready(self) -> list[tuple[str, Grammar | Exception]]:
        """The requests whose grammar is compiled, or cannot be."""
        ready = [name for name, future in self._pending.items() if future.done()]
        return [(name, _outcome(self._pending.pop(name))) for name in ready]

    def _executor(self) -> ThreadPoolExecutor:
        # One thread, so that a vocabulary is known to all that was asked for after it.
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pellucid-grammar")
        return self._thread

    def _make_compiler(self, vocabulary: Vocabulary) -> None:
        from pellucid.grammar.compiler import GrammarCompiler

        self._compiler = GrammarCompiler(
            vocabulary.tokens(),
            vocabulary.special_ids,
            self._info.eos_token_ids,
            self._info.vocab_size,
        )

    def _compile(self, source: str) -> Grammar:
        if self._compiler is None:
            raise RuntimeError("the engine does not know the vocabulary")
        return self._compiler.compile(source)


def _outcome(future: Future[Grammar]) -> Grammar | Exception:
    try:
        return future.result()
    except Exception as error:
        return error
