"""What the fields of settings are made of."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

MIB = 1 << 20
GIB = 1 << 30
SECRET = {"secret": True}  # in Meta.extra: no message may repeat the value

Count = Annotated[int, Meta(ge=1)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
Gibibytes = Annotated[float, Meta(gt=0.0, le=1 << 20)]
KeepAlive = Annotated[float, Meta(ge=-1.0, le=1e9)]


def about(description: str, **limits: Any) -> Meta:
    """A field's line of help, and what its value is held to."""
    return Meta(description=description, **limits)
