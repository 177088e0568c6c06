"""Errors about a request that was translated, in the names of the API that it came by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pellucid.errors import BadRequest

Names = tuple[tuple[re.Pattern[str], str], ...]  # of a field in a path or a message: its own name


def compiled(names: Mapping[str, str]) -> Names:
    """Common words should be matched only where a path or message begins: `^stop\\b`."""
    return tuple((re.compile(ours), theirs) for ours, theirs in names.items())


@contextmanager
def own_names(names: Names) -> Iterator[None]:
    """Let a BadRequest that is raised inside name the fields that the client has written."""
    try:
        yield
    except BadRequest as error:
        for ours, theirs in names:
            error.message = ours.sub(theirs, error.message)
            error.param = error.param and ours.sub(theirs, error.param)
        raise
