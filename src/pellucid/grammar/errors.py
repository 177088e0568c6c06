"""The one error of this package."""

from __future__ import annotations

# How the error of a request begins whose grammar grew beyond the limits while it was followed.
CANNOT_FOLLOW = "the grammar cannot be followed"


class GrammarError(ValueError):
    """A grammar that cannot be honoured; the message says why and can be shown to its author."""
