"""A load to look at: synthetic clients who ask all at once, with requests like any other."""

from __future__ import annotations

import asyncio
import time

import msgspec
from starlette.requests import Request

from pellucid.errors import BadRequest, Overloaded, PellucidError, RateLimited
from pellucid.observe.ledger import Record
from pellucid.server.params import generate_params
from pellucid.server.protocol import GenerateRequest
from pellucid.server.service import Service

MAX_CLIENTS = 128
LOAD_TOKENS = 96  # of each answer

PREAMBLE = (
    "You are the keeper of a lighthouse, and you tell a story to everyone who climbs up to the "
    "lamp. Your stories are short, they begin in the middle, and they are about a thing that you "
    "have seen from up there. Visitors write down what they hear, so speak in whole sentences.\n\n"
)
SEEN = ("a ship", "a storm", "a whale", "a balloon", "an island", "a letter", "a comet", "a thief")
WHEN = ("in a winter night", "at dawn", "when nobody looked", "on the longest day of the year")


class LoadRuns(BadRequest):
    """Somebody has started a load, and it has not ended."""

    status = 409


class Load(msgspec.Struct):
    """How the clients of a load fare. Every one of them is answered, refused, failed, or open."""

    clients: int
    answered: int = 0
    refused: int = 0  # the queue was full, or a rate limit was reached
    failed: int = 0
    why: str = ""  # the last one was refused, or failed
    completion_tokens: int = 0
    seconds: float = 0.0  # once it has ended
    is_running: bool = True

    async def run(self, request: Request, service: Service, model: str | None) -> None:
        """Ask, and wait for all answers. Cancelled, it ends what is open."""
        begin = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for nth, prompt in enumerate(load_prompts(self.clients)):
                    body = _body(service, model, f"{request.state.request_id}-{nth}")
                    group.create_task(self._ask(_as_client(request, body), service, body, prompt))
        finally:
            self.seconds = round(time.monotonic() - begin, 3)
            self.is_running = False

    async def _ask(
        self, request: Request, service: Service, body: GenerateRequest, prompt: str
    ) -> None:
        record: Record = request.state.record
        try:
            params = generate_params(body)
            job = await service.open(request, body, params, [prompt], kind="load")
            try:
                async for delta in job.deltas():
                    self.completion_tokens += len(delta.token_ids)
            finally:
                await job.aclose()
            self.answered += 1
            record.status = 200
        except (Overloaded, RateLimited) as error:
            self.refused += 1
            self.why, record.status = error.message, error.status
        except PellucidError as error:  # the engine died, or the deadline passed
            self.failed += 1
            self.why, record.status = error.message, error.status
        finally:
            if record.answering is not None:
                service.observation.ledger.close(record)


def _body(service: Service, model: str | None, request_id: str) -> GenerateRequest:
    """What a client asks for; fits any context."""
    longest = service.max_model_len // 2
    return GenerateRequest(
        prompt="",
        model=model,
        max_tokens=min(LOAD_TOKENS, longest),
        truncate_prompt_tokens=longest,
        temperature=1.0,
        cache=False,
        request_id=request_id,
    )


def _as_client(request: Request, body: GenerateRequest) -> Request:
    """A client's own request within `request`: with a record, and so a time line, of its own."""
    path: str = request.scope["path"]
    record = Record("POST", path, time.monotonic(), time.time())
    record.request_id, record.route = body.request_id or "", path
    return Request({**request.scope, "state": {**request.scope["state"], "record": record}})


def load_prompts(clients: int) -> list[str]:
    """One prompt a client: all share a prefix and differ at the end."""
    return [
        f"{PREAMBLE}Visitor {i + 1} asks about {SEEN[i % len(SEEN)]} {WHEN[i // len(SEEN) % 4]}:"
        for i in range(clients)
    ]
