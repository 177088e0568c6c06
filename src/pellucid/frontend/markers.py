"""Finding a marker in a text that arrives in pieces."""

from __future__ import annotations


def split_at_marker(text: str, marker: str) -> tuple[str, str | None]:
    """What surely comes before `marker`, and what comes behind it; None if it is not there (yet).

    The caller keeps the rest, `text` without the first part, while the second is None.
    """
    before, found, behind = text.partition(marker)
    if found:
        return before, behind
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return text[:-length], None
    return text, None
