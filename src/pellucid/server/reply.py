"""Sending an answer: whole or as a stream, and to nobody who is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from pellucid.server.errors import ClientGone
from pellucid.server.job import Job

T = TypeVar("T")


def json_response(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


async def whole(request: Request, job: Job, work: Coroutine[Any, Any, msgspec.Struct]) -> Response:
    """Answer with what `work` makes of the job, and close the job.

    Raises ClientGone if there is nobody to answer any more, and what `work` raises.
    """
    try:
        return json_response(await unless_gone(request.receive, work))
    finally:
        await job.aclose()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it the moment the client disconnects.

    The request's body must have been read. Raises ClientGone.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientGone
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
