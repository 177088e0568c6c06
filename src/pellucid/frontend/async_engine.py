"""The engine as asyncio programs see it: prompts in, streams of text out.

Embed it in a program of your own:

>>> async with AsyncLLM(EngineConfig.of(model="smollm2-135m")) as llm:
...     prompt = await llm.chat_prompt([{"role": "user", "content": "Hello"}])
...     async for delta in llm.generate(prompt, SamplingParams(max_tokens=64)):
...         print(delta.text, end="", flush=True)

Any number of tasks may generate at once; the engine batches them. Leaving a loop early, cancelling
its task or closing its iterator aborts the request and frees its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from pellucid.config import EngineConfig
from pellucid.engine.client import EngineClient, ProcessClient
from pellucid.errors import EngineDead
from pellucid.frontend.adapters import Adapters
from pellucid.frontend.embedding import NOTHING_SAMPLED, vector_of
from pellucid.frontend.events import EventHub
from pellucid.frontend.generation import Generation
from pellucid.frontend.inputs import InputProcessor, PreparedRequest, RequestOptions
from pellucid.frontend.open_requests import OpenRequests
from pellucid.frontend.outputs import Delta
from pellucid.frontend.stats import StatsListener
from pellucid.frontend.text import ModelText, load_text
from pellucid.frontend.vocabulary import check_draft_vocabulary
from pellucid.load.hub import resolve
from pellucid.messages import Abort, AddRequest, Command, EngineInfo, StepOutput
from pellucid.sampling_params import SamplingParams
from pellucid.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from pellucid.frontend.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

INLINE_MESSAGES = 32  # rendered on the event loop; a longer conversation goes to a thread


class AsyncLLM:
    """A model that serves many requests at once, on one event loop.

    Args:
        config: model, memory and limits.
        client: the engine; one in a process of its own by default.
        text: tokenizer and chat template; loaded from the model's files by default.
        retries: engines that may die under a request before its first token; whoever sets this
            calls `restart` (see `Supervisor`).
    """

    def __init__(
        self,
        config: EngineConfig,
        client: EngineClient | None = None,
        *,
        text: ModelText | None = None,
        retries: int = 0,
    ) -> None:
        self.config = config
        self.died = asyncio.Event()  # the engine died; cleared by `restart`
        self.retry_after: float | None = None  # seconds; told to who comes while it is dead
        self.listeners: list[StatsListener] = []
        self.events = EventHub(self._send_quietly)
        self.adapters = Adapters(self._send)  # LoRA adapters that requests may have
        self._client: EngineClient = client or ProcessClient(config)
        self._text = text
        self._info: EngineInfo | None = None
        self._pump: asyncio.Task[None] | None = None
        self._death: EngineDead | None = EngineDead("the engine was not started")
        self._retries = retries
        self.closed = False  # for good
        self._told_vocabulary = False  # what tokens spell, which grammars need
        self._num_preparing = 0  # answers admitted whose prompt is being tokenised

    # ---- life

    async def start(self) -> None:
        """Load the model; returns when requests can be taken.

        Raises ModelError, ConfigError or EngineDead; nothing is left running then.
        """
        files, draft = None, self.config.draft()
        if self._text is None:
            # Before the engine looks for them, so that a download happens once.
            files = await asyncio.to_thread(resolve, self.config.model)
        draft_files = None if draft is None else await asyncio.to_thread(resolve, draft)
        starting = asyncio.create_task(self._client.start())
        try:
            if files is not None:
                self._text = await asyncio.to_thread(load_text, files, self.config.model)
            if draft_files is not None:
                await asyncio.to_thread(check_draft_vocabulary, draft_files, self.tokenizer)
            info = await starting
        except BaseException:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._client.close()
            raise
        timeout = self.config.scheduler.request_timeout
        # These outlive the engine: the next one has the same model and limits.
        self._inputs = InputProcessor(self.tokenizer, info, timeout)
        self._requests = OpenRequests(
            self.tokenizer, self.config.scheduler, self._retries, self.listeners, self._tell_aborted
        )
        self._attach(info)
        try:
            for name, path in self.config.model.adapters().items():
                await self.adapters.load(name, path)
        except BaseException:
            await self.close()
            raise

    async def restart(self, client: EngineClient) -> None:
        """Put a new engine in the place of the dead one; requests without a token go to it.

        Raises as `start`; then it is dead as before, and those requests still wait.
        """
        await self._detach()
        self._client = client
        try:
            info = await client.start()
            if self.closed:
                raise EngineDead("the engine was closed")
        except BaseException:
            await client.close()
            raise
        self._attach(info)
        try:
            await self.adapters.load_again()
            self._hand_over(self._requests.take_orphans())
        except EngineDead as error:
            self._die(error)

    async def close(self, death: EngineDead | None = None) -> None:
        """Stop the engine; open iterators raise `death`, by default EngineDead. Idempotent."""
        self.closed = True
        death = death or EngineDead("the engine was closed")
        self._die(death)
        if self._info is not None:
            self._requests.give_up(death)
        await self._detach()

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # ---- what it is, and how it fares

    @property
    def info(self) -> EngineInfo:
        """The engine's model and limits. Raises EngineDead before `start`."""
        if self._info is None:
            raise EngineDead("the engine was not started")
        return self._info

    @property
    def text(self) -> ModelText:
        """Tokenizer, chat template and name of the model. Raises EngineDead before `start`."""
        if self._text is None:
            raise EngineDead("the engine was not started")
        return self._text

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    @property
    def model_name(self) -> str:
        """The name under which the model is served."""
        return self.config.model.served_model_name or self.text.name

    @property
    def alive(self) -> bool:
        """Requests can be taken."""
        return self._death is None and self._client.alive

    @property
    def num_unfinished(self) -> int:
        """Answers that run, wait, or are being tokenised."""
        return len(self._requests) + self._num_preparing if self._info else 0

    # ---- text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    async def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation in the model's chat format.

        `options` go to `ChatTemplate.render`: `add_generation_prompt`, `continue_final_message`,
        `tools`, and whatever variables the template itself knows.

        Raises:
            BadRequest: the model has no chat template, the template refuses the conversation, or
                no split of its text into tokens fits into the context.
        """
        self._check_alive()
        if len(messages) <= INLINE_MESSAGES:
            text = self.text.render_chat(messages, **options)
        else:
            text = await asyncio.to_thread(self.text.render_chat, messages, **options)
        # The template writes the special tokens itself.
        return await self._inputs.tokenize(text, field="messages", add_special_tokens=False)

    async def check_structured(self, wanted: StructuredOutputs | str, field: str) -> None:
        """Raises BadRequest, naming `field`, for what `submit` could not honour; EngineDead."""
        self._check_alive()
        await self._inputs.grammars.check(wanted, field)

    # ---- requests

    async def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Check a request and hand it to the engine; read the answers from what is returned.

        Raises:
            BadRequest: a field is wrong; nothing was queued.
            Overloaded: the queue is full.
            EngineDead: there is no engine to take it.
        """
        self._check_alive()
        self._requests.check_room(params.n, self._num_preparing)  # before any work is spent on it
        self._num_preparing += params.n
        try:
            request = await self._inputs.prepare(prompt, params, **options)
        finally:
            self._num_preparing -= params.n
        return self.open(request)

    async def prepare(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        **options: Unpack[RequestOptions],
    ) -> PreparedRequest:
        """Tokenise and check a request for a later `open`. Raises BadRequest, EngineDead."""
        self._check_alive()
        return await self._inputs.prepare(prompt, params, **options)

    def open(self, request: PreparedRequest) -> Generation:
        """Hand a prepared request to the engine. Raises BadRequest, Overloaded, EngineDead."""
        self._check_alive()
        for sequence in request.sequences:
            if sequence.adapter is not None:
                self.adapters.check(sequence.adapter)
        self._requests.check_room(len(request.sequences), self._num_preparing)
        generation = self._requests.add(request)
        try:
            self._hand_over(request.sequences)
        except EngineDead as error:
            self._die(error)
            self._requests.abort(generation)  # its caller is told: it does not wait for another
            raise
        return generation

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[Delta, None]:
        """`submit` and read: the deltas of all `n` answers, interleaved; see `Delta.index`.

        A deadline that passes ends the answer with finish_reason "timeout". Raises what `submit`
        raises, with the first delta, and EngineDead when the engine dies midway.
        """
        generation = await self.submit(prompt, params, **options)
        try:
            async for delta in generation:
                yield delta
        finally:
            await generation.aclose()

    async def embed(
        self,
        prompt: str | list[int],
        *,
        normalize: bool = True,
        **options: Unpack[RequestOptions],
    ) -> list[float]:
        """A vector of the prompt: its final hidden states, pooled; the last one by default.

        `normalize` makes its length 1. Cancelling the caller's task aborts the request. Raises what
        `submit` raises, and what `vector_of` does.
        """
        options.setdefault("pooling", "last")
        generation = await self.submit(prompt, NOTHING_SAMPLED, **options)
        output = await generation.result()
        vector: list[float] = vector_of(output.outputs[0], normalize=normalize).tolist()
        return vector

    def abort(self, request_id: str) -> bool:
        """End a request: its reader gets what is left, with finish_reason "abort".

        Returns whether there was anything to end.
        """
        generation = self._requests.find(request_id) if self._info else None
        return generation is not None and self._requests.abort(generation)

    # ---- inside

    def _check_alive(self) -> None:
        if self._death is not None:
            raise type(self._death)(self._death.message, retry_after=self.retry_after)

    def _hand_over(self, sequences: Sequence[AddRequest]) -> None:
        """Raises EngineDead."""
        has_grammar = any(sequence.sampling.grammar is not None for sequence in sequences)
        if has_grammar and not self._told_vocabulary:
            self._client.send(self._inputs.grammars.vocabulary())
            self._told_vocabulary = True
        for sequence in sequences:
            self._client.send(sequence)

    def _tell_aborted(self, request_ids: list[str]) -> None:
        self._send_quietly(Abort(request_ids=request_ids))

    def _send(self, command: Command) -> None:
        """Raises EngineDead."""
        self._check_alive()
        self._client.send(command)

    def _send_quietly(self, command: Command) -> None:
        if self._death is None:
            with contextlib.suppress(EngineDead):  # a dead engine has nothing to abort or to tell
                self._client.send(command)

    async def _pump_outputs(self) -> None:
        """Hand over the engine's outputs until it dies or `close` cancels this task."""
        try:
            async for output in self._client.outputs():
                self._take(output)
            self._die(EngineDead("the engine stopped"))
        except EngineDead as error:
            self._die(error)
        except Exception as error:
            logger.exception("the front end failed to process the engine's output")
            self._die(EngineDead(f"the front end failed: {type(error).__name__}"))

    def _take(self, output: StepOutput) -> None:
        self._requests.take(output)
        self.adapters.take(output.adapters)
        if output.events:
            self.events.publish(output.events)

    def _die(self, death: EngineDead) -> None:
        """Refuse what comes from now on; end every open iterator that cannot wait for `restart`."""
        if self._death is None:
            self._death = death
            if not self.closed:
                death.retry_after = self.retry_after
            if self._info is not None:
                self._requests.engine_died(death)
            self.adapters.engine_died(death)
            self.died.set()

    def _attach(self, info: EngineInfo) -> None:
        """An engine is there: take requests, and read what it makes of them."""
        self._info = info
        self._death = None
        self._told_vocabulary = False
        self.died.clear()
        self.events.engine_started()
        self._pump = asyncio.create_task(self._pump_outputs(), name="pellucid-outputs")

    async def _detach(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._client.close()
