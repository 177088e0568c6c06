"""Which web pages may call the API from a browser."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

EXPOSED = (
    "request-id",
    "retry-after",
    "x-pellucid-cache",
    "x-request-id",
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Answer preflights from `origins`, and let their pages read responses, refusals included.

    To be added last, around everything: a preflight carries no key. Cookies stay out of it: a page
    authenticates with a key that it has, not with one that the browser adds.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
            max_age=600,
        )
