"""Whole answers to requests that can only have one, kept and given again.

An answer is cached as what the engine said, not as what a client was sent: one entry serves chat
and completions, whole and streamed, with whatever shape of response was asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pellucid.frontend.generation import Generation
from pellucid.frontend.inputs import PreparedRequest
from pellucid.frontend.outputs import Delta
from pellucid.sampling_params import SamplingParams
from pellucid.server.gateway.stores import Store

logger = logging.getLogger(__name__)

MAX_ENTRY_BYTES = 4 << 20
# Options of `AsyncLLM.submit` that cannot change an answer. Any other is part of the key.
# An adapter is part of the identity that the caller gives.
_IRRELEVANT = frozenset(
    {"request_id", "priority", "user", "timeout", "prompt_field", "structured_field", "adapter"}
)


class CachedAnswer(msgspec.Struct, array_like=True):
    """One prompt's answers; `key` is stored again so that a wrong value is never believed."""

    key: bytes
    prompt_token_ids: list[int]
    answers: list[Delta]


class AnswerCache:
    """Finds and keeps answers by a hash over all that determines them.

    `shared` lets different owners, that is API keys, see each other's entries. A `cache_salt`
    separates requests all the same.
    """

    def __init__(self, store: Store, *, shared: bool) -> None:
        self._store = store
        self._shared = shared
        self._decoder = msgspec.msgpack.Decoder(CachedAnswer)

    def key(
        self,
        identity: str,
        owner: str,
        prompt: str | list[int],
        params: SamplingParams,
        options: Mapping[str, Any],
    ) -> bytes | None:
        """The name of the answer, 32 bytes; None if another one could be given next time.

        Args:
            identity: stands for the engine, see `engine_identity`, and the adapter if there is one.
        """
        if not params.greedy and params.seed is None:
            return None
        if params.greedy:  # what shapes chance has no say
            params = msgspec.structs.replace(
                params, temperature=0.0, seed=None, top_k=0, top_p=1.0, min_p=0.0
            )
        rest = {name: value for name, value in options.items() if name not in _IRRELEVANT}
        parts = (identity, "" if self._shared else owner, prompt, params, rest)
        plain = msgspec.to_builtins(parts, str_keys=True)  # only such keys can be ordered
        return hashlib.sha256(msgspec.msgpack.encode(plain, order="deterministic")).digest()

    async def find(
        self, key: bytes, prompt: str | list[int], params: SamplingParams, request_id: str
    ) -> Generation | None:
        """The answer as a generation that is done already."""
        value = await self._store.get(key)
        if value is None:
            return None
        try:
            cached = self._decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("an entry of the answer cache is damaged")
            return None
        if cached.key != key:
            return None
        text = prompt if isinstance(prompt, str) else None
        return _Replay(
            PreparedRequest(request_id, text, cached.prompt_token_ids, params, []), cached.answers
        )

    async def keep(self, key: bytes, prompt_ids: list[int], answers: Sequence[Delta]) -> None:
        """Remember `answers`, each whole, unless one of them was cut short by an accident."""
        if any(answer.finish_reason not in ("stop", "length") for answer in answers):
            return
        clean = [
            dataclasses.replace(answer, times=None, num_cached_tokens=len(prompt_ids))
            for answer in answers
        ]
        value = msgspec.msgpack.encode(CachedAnswer(key, prompt_ids, clean))
        if len(value) <= MAX_ENTRY_BYTES:
            await self._store.put(key, value)

    async def close(self) -> None:
        await self._store.close()


class _Replay(Generation):
    """Reads like a generation of the engine, whose answers have all arrived."""

    def __init__(self, request: PreparedRequest, answers: Sequence[Delta]) -> None:
        super().__init__(request, abort=lambda _: None)
        self._num_open = len(answers)
        for answer in answers:
            self.put(answer)
