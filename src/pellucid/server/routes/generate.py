"""POST /generate and /generate_stream: the shortest way from a prompt to a stream of tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from pellucid.server.job import Job, Tally
from pellucid.server.models import receive
from pellucid.server.openapi import describe
from pellucid.server.params import generate_params, invalid
from pellucid.server.protocol import GenerateRequest
from pellucid.server.reply import whole
from pellucid.server.responses import Generated, GenerateEnd, GenerateToken
from pellucid.server.sse import EventStream, event

EVENTS = "a GenerateToken (at the end a GenerateEnd)"

router = APIRouter()


@router.post("/generate", **describe(GenerateRequest, Generated, events=EVENTS))
async def generate(request: Request) -> Response:
    """Continue a prompt as a stream, or as one JSON object with `"stream": false`."""
    return await _generate(request, may_be_whole=True)


@router.post("/generate_stream", **describe(GenerateRequest, None, events=EVENTS))
async def generate_stream(request: Request) -> Response:
    """Continue a prompt as a stream."""
    return await _generate(request, may_be_whole=False)


async def _generate(request: Request, *, may_be_whole: bool) -> Response:
    service, body = await receive(request, GenerateRequest)
    streams = body.stream is not False
    if not streams and not may_be_whole:
        raise invalid("stream", "must not be false on this route")
    body.stream = streams
    job = await service.open(request, body, generate_params(body), [body.prompt], kind="gen")
    if streams:
        return EventStream(job, _events(job))
    return await whole(request, job, _whole(job))


async def _whole(job: Job) -> Generated:
    (answer,) = await job.collect()
    tally = Tally(job)
    tally.add(answer)
    assert answer.finish_reason is not None  # collected to its end
    return Generated(
        answer.text, answer.token_ids, answer.finish_reason, tally.usage(), answer.stop_reason
    )


async def _events(job: Job) -> AsyncGenerator[bytes, None]:
    tally = Tally(job)
    async with aclosing(job.deltas()) as deltas:
        async for delta in deltas:
            tally.add(delta)
            events = b""
            last = len(delta.token_ids) - 1
            for i, token in enumerate(delta.token_ids):
                events += event(GenerateToken(token, delta.text if i == last else ""))
            if delta.finish_reason is not None:
                end = GenerateEnd(delta.finish_reason, tally.usage(), delta.stop_reason)
                events += event(end)
            if events:
                yield events
