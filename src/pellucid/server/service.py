"""What every route shares: the model, the limits, and the way to the engine."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Sequence

import msgspec
import psutil
from starlette.requests import Request

from pellucid import __version__
from pellucid.config import EngineConfig, ServerConfig
from pellucid.errors import Overloaded
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.sampling_params import SamplingParams
from pellucid.server.gateway.gateway import Gateway
from pellucid.server.job import Answers, Job
from pellucid.server.metrics import Metrics
from pellucid.server.observation import Observation
from pellucid.server.params import check_fields, invalid, scores_only
from pellucid.server.protocol import SamplingFields
from pellucid.server.responses import Load
from pellucid.server.structured import structured_field

INLINE_CHARS = 2000  # longer text is tokenised in a thread


class Service:
    """One model behind HTTP; its engine runs."""

    def __init__(
        self, llm: AsyncLLM, config: ServerConfig, engine: EngineConfig, gateway: Gateway
    ) -> None:
        info = llm.info
        self.llm = llm
        self.gateway = gateway
        self.config = config
        self.engine = engine
        self.created = int(time.time())
        self.num_open = 0  # jobs that are being answered
        # Longest prompt plus answer: the model's limit, or the KV pool's if that is smaller.
        self.max_model_len = min(info.max_model_len, info.num_kv_blocks * info.block_size)
        self.fingerprint = _fingerprint(llm)
        self.metrics = Metrics(llm, engine, gateway.counts, num_open=lambda: self.num_open)
        llm.listeners.append(self.metrics)
        self.observation = Observation(llm, config.observe, self.metrics.registry)

    def close(self) -> None:
        """End the files and links of those who look on. Idempotent."""
        self.observation.close()

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
    ) -> Job:
        """Hand every prompt to the engine; `kind` begins the id that the client sees.

        Raises what `Gateway.submit` raises; then nothing is left in the engine.
        """
        self._check_room(len(prompts) * params.n)
        generations: list[Answers] = []
        job = Job(
            id=f"{kind}-{body.request_id or request.state.request_id}",
            params=params,
            generations=generations,
            scores_only=scores_only(body),
            form_field=structured_field(body, default="tools"),
            on_close=self._job_closed,
        )
        self.num_open += 1
        opened: float | None = None
        try:
            for prompt in prompts:
                generation = await self.gateway.submit(
                    self.llm,
                    request.state.caller,
                    prompt,
                    params,
                    use_cache=body.cache is not False,
                    # Clients may repeat an id; the engine's must differ.
                    request_id=f"{job.id}-{uuid.uuid4().hex[:12]}",
                    priority=body.priority or 0,
                    user=body.user or body.safety_identifier,
                    cache_salt=body.cache_salt,
                    timeout=body.timeout,
                    truncate_prompt_tokens=body.truncate_prompt_tokens,
                    add_special_tokens=body.add_special_tokens is not False,
                    prompt_field=prompt_field,
                    structured_field=structured_field(body),
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
        self.observation.opened(record, job, opened or time.monotonic(), bool(body.stream))
        return job

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`, without holding up the event loop for a long one."""
        if len(text) <= INLINE_CHARS:
            return self.llm.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.llm.encode, text, add_special_tokens=add_special_tokens)

    def load(self) -> Load:
        """The machine's and the server's load right now."""
        return Load(
            active_streams=self.num_open,
            tokens_per_sec=self.metrics.tokens_per_second(),
            cpu_percent=psutil.cpu_percent(),
            ram_percent=psutil.virtual_memory().percent,
        )

    def _check_room(self, num_answers: int) -> None:
        limits = self.engine.scheduler
        room = limits.max_num_seqs + limits.max_waiting
        if num_answers > room:  # it could wait for ever
            raise invalid("prompt", f"asks for {num_answers} answers; the queue holds {room}")

    def _job_closed(self, job: Job) -> None:
        self.num_open -= 1


def _fingerprint(llm: AsyncLLM) -> str:
    """Answers of equal fingerprints come from the same build, model and number format."""
    info = llm.info
    parts = (llm.model_name, info.architecture, info.dtype, info.device, info.kernels)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"pellucid-{__version__}-{digest[:8]}"
