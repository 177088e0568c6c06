"""Everything between clients and the engine that is not HTTP: keys, limits, cache, life."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Unpack

from starlette.types import Scope

from pellucid.config import GatewayConfig
from pellucid.errors import ShuttingDown, Unauthorized
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.inputs import RequestOptions
from pellucid.frontend.outputs import Delta
from pellucid.observe.counters import CacheOutcome, Counters
from pellucid.sampling_params import SamplingParams
from pellucid.server.gateway.answer_cache import AnswerCache
from pellucid.server.gateway.auth import KeyRing, presented_key
from pellucid.server.gateway.rate_limit import RateLimiter, address_of
from pellucid.server.gateway.stores import make_store
from pellucid.server.gateway.watched import Watched
from pellucid.server.job import Answers

CACHE_HEADER = "x-pellucid-cache"


@dataclass(slots=True)
class Caller:
    """Who sent a request; in `request.state.caller`."""

    name: str  # key:NAME, or addr:ADDRESS where no key is asked for; limits and logs use it
    owner: str  # whose cached answers it may see: its key's name, "" without keys
    headers: dict[str, str]  # of the response to come


class Gateway:
    """One server's, whatever models it has."""

    def __init__(self, config: GatewayConfig) -> None:
        """Raises ConfigError: a key, a file or a package that the settings need is not there."""
        self.config = config
        self.counts = Counters()
        self.keys = KeyRing(config.access)
        self.limiter = RateLimiter(config.limits, self.counts)
        store = make_store(config.answers, self.counts)
        self.cache = AnswerCache(store, shared=config.answers.cache_shared) if store else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_active = 0
        self._idle = asyncio.Event()
        self._drain_ends: float | None = None

    # ---- requests

    async def admit(self, scope: Scope) -> None:
        """Find out whose request it is, and whether it may be made now.

        Raises Unauthorized, ShuttingDown, RateLimited.
        """
        headers: dict[str, str] = scope["state"]["response_headers"]
        caller = self._caller_of(scope, headers)
        scope["state"]["caller"] = caller
        if scope["method"] != "POST":
            return
        if self._drain_ends is not None:
            self.counts.refused["shutting_down"] += 1
            headers["connection"] = "close"
            raise ShuttingDown(
                "The server is shutting down.", retry_after=self._drain_ends - time.monotonic()
            )
        await self.limiter.admit(caller.name, headers)

    async def submit(
        self,
        llm: AsyncLLM,
        caller: Caller,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        identity: str,
        use_cache: bool,
        **options: Unpack[RequestOptions],
    ) -> Answers:
        """`AsyncLLM.submit` with the limits and the cache around it. Raises RateLimited, too.

        Args:
            identity: of the engine, see `AnswerCache.key`.
        """
        key = None
        if self.cache is not None:
            if use_cache:
                key = self.cache.key(identity, caller.owner, prompt, params, options)
            if key is None:
                self._tell(caller, "bypass")
            else:
                request_id = options.get("request_id") or ""
                if known := await self.cache.find(key, prompt, params, request_id):
                    self._tell(caller, "hit")
                    return known
                self._tell(caller, "miss")
        generation = await llm.submit(prompt, params, **options)
        prompt_ids = generation.prompt_token_ids
        try:
            await self.limiter.charge_prompt(caller.name, len(prompt_ids), caller.headers)
        except BaseException:
            await generation.aclose()
            raise

        def on_end(num_tokens: int, answers: list[Delta] | None) -> None:
            self._spawn(self.limiter.charge_answer(caller.name, num_tokens))
            if self.cache is not None and key is not None and answers is not None:
                self._spawn(self.cache.keep(key, prompt_ids, answers))

        if key is not None or self.limiter.counts_tokens:
            return Watched(generation, on_end)
        return generation

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Around a request that `drain` shall wait for."""
        self._num_active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_active -= 1
            if not self._num_active:
                self._idle.set()

    # ---- life

    @property
    def draining(self) -> bool:
        return self._drain_ends is not None

    async def drain(self) -> bool:
        """Refuse new requests and wait for the open ones; returns whether all of them ended."""
        self._drain_ends = time.monotonic() + self.config.life.drain_timeout
        if self._num_active:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.life.drain_timeout):
                    await self._idle.wait()
        return not self._num_active

    @property
    def num_active(self) -> int:
        return self._num_active

    def count_restart(self) -> None:
        """An engine died, and another has taken its place."""
        self.counts.engine_restarts += 1

    async def close(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.cache is not None:
            await self.cache.close()

    # ---- inside

    def _caller_of(self, scope: Scope, headers: dict[str, str]) -> Caller:
        if self.keys.is_open:
            return Caller(f"addr:{address_of(scope.get('client'))}", "", headers)
        try:
            key = self.keys.name_of(presented_key(scope["headers"]))
        except Unauthorized:
            self.counts.refused["api_key"] += 1
            raise
        return Caller(f"key:{key}", key, headers)

    def _tell(self, caller: Caller, outcome: CacheOutcome) -> None:
        """One header for a request of several prompts: a hit only if all of them are."""
        self.counts.cache[outcome] += 1
        before = caller.headers.setdefault(CACHE_HEADER, outcome)
        if before != outcome:
            caller.headers[CACHE_HEADER] = "miss"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` besides the request that asks for it: nobody waits for its end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
