"""The one error of this package."""

from __future__ import annotations


class GrammarError(ValueError):
    """A grammar that cannot be honoured; the message says why and can be shown to its author."""
