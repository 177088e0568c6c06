"""What every route shares: the model, the limits, and the way to the engine."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from starlette.requests import Request

from pellucid import __version__
from pellucid.config import ServerConfig
from pellucid.errors import Overloaded
from pellucid.frontend.adapters import Adapter
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.inputs import INLINE_CHARS
from pellucid.messages import Pooling
from pellucid.sampling_params import SamplingParams
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.job import Answers, Job
from pellucid.server.observation import Observation
from pellucid.server.params import check_fields, invalid, scores_only
from pellucid.server.protocol import SamplingFields
from pellucid.server.structured import structured_field
from pellucid.server.watch import Watch

MAX_BIASES = 1 << 18  # of all answers of a request: the engine stands still while it reads them


class Service:
    """One model behind HTTP; its engine runs.

    Args:
        watch: what looks on at this engine; closed with the service.
        identity: tells this engine's answers from those of others, for the cache of answers.
        on_job_closed: called at the end of each request that went to the engine.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        config: ServerConfig,
        gateway: Gateway,
        observation: Observation,
        watch: Watch,
        identity: str,
        on_job_closed: Callable[[], None],
    ) -> None:
        info = llm.info
        self.llm = llm
        self.gateway = gateway
        self.config = config
        self.engine = llm.config
        self.identity = identity
        self.model_name = llm.model_name  # as answers call it: an adapter's own, if there is one
        self.adapter: Adapter | None = None  # that answers get; see `adapted`
        self._open = _Open()
        # Longest prompt plus answer: the model's limit, or the KV pool's if that is smaller.
        self.max_model_len = min(info.max_model_len, info.num_kv_blocks * info.block_size)
        self.fingerprint = _fingerprint(llm)
        self.metrics = watch.metrics
        self.observation = observation
        self._watch = watch
        self._on_job_closed = on_job_closed

    @property
    def num_open(self) -> int:
        """Jobs that are being answered, with whatever adapter."""
        return self._open.num_jobs

    def adapted(self, name: str) -> Service:
        """The same model with a LoRA adapter. Raises ModelNotFound."""
        adapted = copy.copy(self)
        adapted.adapter = adapter = self.llm.adapters.find(name)
        adapted.model_name = name
        adapted.identity = f"{self.identity} {adapter.digest}"
        adapted.fingerprint = _fingerprint(self.llm, adapter)
        return adapted

    def close(self) -> None:
        """End the files of those who look on. Idempotent."""
        self._watch.close()

    def check(self, body: msgspec.Struct) -> None:
        """Hold a body to this server's limits. Raises BadRequest."""
        num_messages, most = len(getattr(body, "messages", None) or ()), self.config.max_messages
        if num_messages > most:
            raise invalid("messages", f"must be at most {most}, got {num_messages}")
        if isinstance(body, SamplingFields):
            check_fields(body, self.config, self.engine.scheduler, self.llm.info.vocab_size)

    async def open(
        self,
        request: Request,
        body: SamplingFields,
        params: SamplingParams,
        prompts: Sequence[str | list[int]],
        *,
        kind: str,
        prompt_field: str = "prompt",
        pooling: Pooling | None = None,
    ) -> Job:
        """Hand every prompt to the engine; `kind` begins the id that the client sees: cmpl, msg_.

        With `pooling` the job's deltas are vectors, see `frontend/embedding.py`.

        Raises what `Gateway.submit` raises; then nothing is left in the engine.
        """
        self._check_room(len(prompts) * params.n, prompt_field, params)
        generations: list[Answers] = []
        separator = "" if kind.endswith("_") else "-"
        job = Job(
            id=f"{kind}{separator}{body.request_id or request.state.request_id}",
            params=params,
            generations=generations,
            scores_only=scores_only(body),
            form_field=structured_field(body, default="tools"),
            on_close=self._job_closed,
        )
        self._open.num_jobs += 1
        opened: float | None = None
        try:
            for place, prompt in enumerate(prompts):
                generation = await self.gateway.submit(
                    self.llm,
                    request.state.caller,
                    prompt,
                    params,
                    identity=self.identity,
                    use_cache=body.cache is not False,
                    # Clients may repeat an id; the engine's must differ.
                    request_id=f"{job.id}-{uuid.uuid4().hex[:12]}",
                    priority=body.priority or 0,
                    user=body.user or body.safety_identifier,
                    cache_salt=body.cache_salt,
                    timeout=body.timeout,
                    truncate_prompt_tokens=body.truncate_prompt_tokens,
                    add_special_tokens=body.add_special_tokens is not False,
                    prompt_field=prompt_field if len(prompts) == 1 else f"{prompt_field}[{place}]",
                    structured_field=structured_field(body),
                    pooling=pooling,
                    adapter=self.adapter,
                )
                opened = opened or time.monotonic()
                generations.append(generation)
                self.metrics.on_submit(params.n)
        except BaseException as error:
            if isinstance(error, Overloaded):
                self.gateway.counts.refused["queue_full"] += 1
            await job.aclose()
            raise
        record = getattr(request.state, "record", None)
        opened = opened or time.monotonic()
        to, stream = (self.llm, self._watch), bool(body.stream)
        self.observation.opened(record, job, *to, opened, stream, model=self.model_name)
        return job

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`, without holding up the event loop for a long one."""
        if len(text) <= INLINE_CHARS:
            return self.llm.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.llm.encode, text, add_special_tokens=add_special_tokens)

    def _check_room(self, num_answers: int, field: str, params: SamplingParams) -> None:
        limits = self.engine.scheduler
        room = limits.max_num_seqs + limits.max_waiting
        if num_answers > room:  # it could wait for ever
            raise invalid(field, f"asks for {num_answers} answers; the queue holds {room}")
        num_biases = len(params.logit_bias)
        if num_biases * num_answers > MAX_BIASES:
            problem = f"has {num_biases} values for each of {num_answers} answers, together above"
            raise invalid("logit_bias", f"{problem} {MAX_BIASES}")

    def _job_closed(self, job: Job) -> None:
        self._open.num_jobs -= 1
        self._on_job_closed()


@dataclass(slots=True)
class _Open:
    """Shared by a service and those that are it with an adapter."""

    num_jobs: int = 0


def _fingerprint(llm: AsyncLLM, adapter: Adapter | None = None) -> str:
    """Answers of equal fingerprints come from the same build, model and number formats."""
    info = llm.info
    ranks = str(info.tensor_parallel_size)  # the order of sums depends on it
    numbers = (info.dtype, info.kv_dtype, info.device, info.kernels, ranks)
    parts = [llm.model_name, info.architecture, *numbers]
    if adapter is not None:
        parts.append(adapter.digest)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"pellucid-{__version__}-{digest[:8]}"
