"""The engine as scripts and notebooks see it: lists of prompts in, lists of answers out.

>>> with LLM("smollm2-135m") as llm:
...     for output in llm.generate(["One, two,", "Once upon a time"]):
...         print(output.outputs[0].text)
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pellucid.config import EngineConfig
from pellucid.engine.client import offline_client
from pellucid.errors import BadRequest, EngineDead
from pellucid.frontend.adapters import Adapter
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.embedding import NOTHING_SAMPLED, vector_of
from pellucid.frontend.inputs import PreparedRequest
from pellucid.frontend.outputs import RequestOutput
from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.frontend.text import ModelText
from pellucid.messages import EngineInfo, Pooling
from pellucid.sampling_params import SamplingParams

if TYPE_CHECKING:
    from rich.progress import Progress

    from pellucid.frontend.tokenizer import Tokenizer

T = TypeVar("T")

A_YEAR = 365 * 86_400.0  # in place of infinity, which JSON does not have

Prompt = str | list[int]
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model for offline use: batches whatever it is given and returns when all is done.

    An event loop in a thread of its own drives an `AsyncLLM`, so this works wherever plain Python
    does, a notebook with its own running loop included. Ctrl-C aborts what is under way.

    Args:
        model: alias, .gguf file, Hugging Face folder, or hf:org/name[:file].
        in_process: run the engine in this process; otherwise, or if it has several ranks, in one of
            its own.
        text: tokenizer and chat template to use instead of the model's own.
        settings: any setting of `EngineConfig`, by its name. `request_timeout` is unlimited here
            unless set.

    Raises:
        ConfigError: a setting is unknown or out of range.
        ModelError: the model cannot be found or run.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        in_process: bool = True,
        text: ModelText | None = None,
        **settings: Any,
    ) -> None:
        settings.setdefault("request_timeout", A_YEAR)
        config = EngineConfig.of(model=model, **settings)
        client = offline_client(config, in_process=in_process)
        self._engine = AsyncLLM(config, client, text=text)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="pellucid-llm", daemon=True)
        thread.start()
        # Also runs when the object is forgotten and when the interpreter exits.
        self._finalizer = weakref.finalize(self, _shut_down, self._engine, self._loop, thread)
        try:
            self._run(self._engine.start())
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | None = None,
        use_progress_bar: bool = True,
    ) -> list[RequestOutput]:
        """Answer every prompt; outputs come in the order of the prompts.

        All prompts are checked before the first is run.

        Args:
            prompts: a text, its token ids, or a list of these.
            params: for all prompts, or one for each.
            adapter: name of a LoRA adapter of the setting `lora`.

        Raises:
            BadRequest: a prompt or its parameters cannot be served.
            EngineDead: the engine failed, or `close` was called.
        """
        work = self._generate(_prompt_list(prompts), params, adapter, use_progress_bar)
        return self._run(work)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | None = None,
        use_progress_bar: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list; see `generate` and `AsyncLLM.chat_prompt`.

        >>> llm.chat([{"role": "user", "content": "Name a colour."}])[0].outputs[0].text
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("list[Messages]", [messages] if single else list(messages))

        async def run() -> list[RequestOutput]:
            prompts: list[Prompt] = [
                await self._engine.chat_prompt(conversation, **template_options)
                for conversation in conversations
            ]
            return await self._generate(prompts, params, adapter, use_progress_bar)

        return self._run(run())

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        adapter: str | None = None,
    ) -> list[list[float]]:
        """A vector of every prompt, in their order; see `AsyncLLM.embed`.

        All prompts are checked before the first is run.

        Raises:
            BadRequest: a prompt cannot be served.
            EngineDead: the engine failed, or `close` was called.
        """

        async def run() -> list[list[float]]:
            found = self._adapter(adapter)
            requests = [
                await self._engine.prepare(prompt, NOTHING_SAMPLED, pooling=pooling, adapter=found)
                for prompt in _prompt_list(prompts)
            ]
            outputs = await self._run_all(requests)
            return [vector_of(o.outputs[0], normalize=normalize).tolist() for o in outputs]

        return self._run(run())

    def close(self) -> None:
        """Stop the engine and free its memory. Idempotent."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _generate(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapter: str | None,
        use_progress_bar: bool,
    ) -> list[RequestOutput]:
        each, found = _params_list(params, len(prompts)), self._adapter(adapter)
        requests = [
            await self._engine.prepare(prompt, one, adapter=found)
            for prompt, one in zip(prompts, each, strict=True)
        ]
        if not use_progress_bar or not requests:
            return await self._run_all(requests)
        with _ProgressBar(sum(one.n for one in each)) as bar:
            self._engine.listeners.append(bar)
            try:
                return await self._run_all(requests)
            finally:
                self._engine.listeners.remove(bar)

    def _adapter(self, name: str | None) -> Adapter | None:
        """Raises ModelNotFound."""
        return None if name is None else self._engine.adapters.find(name)

    async def _run_all(self, requests: list[PreparedRequest]) -> list[RequestOutput]:
        """Keep the engine's rows and its queue filled, and no more: a short queue is cheap."""
        limits = self._engine.config.scheduler
        most = limits.max_num_seqs + min(limits.max_num_seqs, limits.max_waiting)
        tasks: list[asyncio.Task[RequestOutput]] = []
        running: set[asyncio.Task[RequestOutput]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                for request in requests:
                    while running and self._engine.num_unfinished + request.params.n > most:
                        _, running = await asyncio.wait(
                            running, return_when=asyncio.FIRST_COMPLETED
                        )
                    task = group.create_task(self._engine.open(request).result())
                    tasks.append(task)
                    running.add(task)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` on the private loop; an interrupt of the wait cancels it."""
        if not self._finalizer.alive:
            work.close()
            raise EngineDead("the engine was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class _ProgressBar:
    """A `StatsListener` that draws finished answers and tokens per second on stderr."""

    def __init__(self, num_answers: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress: Progress = RichProgress(
            TextColumn("Answers"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("answers", total=num_answers, speed="")
        self._begin = time.monotonic()
        self._num_prompt = 0
        self._num_generated = 0

    def __enter__(self) -> _ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_step(self, report: StepReport) -> None:
        self._num_prompt += report.stats.num_prompt_tokens
        self._num_generated += report.stats.num_generated_tokens
        seconds = max(time.monotonic() - self._begin, 1e-6)
        speed = (
            f"{self._num_prompt / seconds:.0f} tok/s in, "
            f"{self._num_generated / seconds:.0f} tok/s out"
        )
        self._progress.update(self._task, speed=speed)

    def on_finish(self, report: RequestReport) -> None:
        self._progress.advance(self._task)


def _shut_down(engine: AsyncLLM, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    try:
        asyncio.run_coroutine_threadsafe(engine.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as many. A list of ints is one prompt."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _params_list(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise BadRequest(
            f"params has {len(params)} entries for {count} prompts",
            param="params",
            code="invalid_value",
        )
    return list(params)
