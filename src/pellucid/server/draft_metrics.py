"""What speculation guessed and how much of it was right, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter


class DraftMetrics:
    """Counters of one loaded model."""

    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        def counter(name: str, about: str, *more: str) -> Counter:
            return Counter(f"vllm:spec_decode_{name}", about, [*labels, *more], registry=registry)

        self._labels = labels
        self._drafts = counter("num_drafts", "Guesses, of one or more tokens.").labels(**labels)
        self._proposed = counter("num_draft_tokens", "Tokens guessed.").labels(**labels)
        self._accepted = counter("num_accepted_tokens", "Tokens guessed right.").labels(**labels)
        self._accepted_at = counter(
            "num_accepted_tokens_per_pos",
            "Tokens guessed right, by their position in the guess.",
            "position",
        )

    def count(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Take in a step's guesses: how many tokens each had, and how many were right."""
        self._drafts.inc(len(drafted))
        self._proposed.inc(sum(drafted))
        self._accepted.inc(sum(accepted))
        for position in range(max(accepted, default=0)):
            num_right = sum(count > position for count in accepted)
            self._accepted_at.labels(**self._labels, position=str(position)).inc(num_right)
