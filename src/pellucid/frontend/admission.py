"""Who is let into the queue: bounded by answers and by prompt tokens, before anything is spent."""

from __future__ import annotations

from pellucid.config import SchedulerSettings
from pellucid.errors import BadRequest, Overloaded

MAX_RETRY_AFTER = 60.0  # seconds


class Admission:
    """The bounds of one engine's queue, and when to come back if it is full."""

    def __init__(self, limits: SchedulerSettings) -> None:
        self._limits = limits
        self._capacity = limits.max_num_seqs + limits.max_waiting
        self._mean_seconds = 1.0  # of recent requests, from arrival to end

    def observe(self, seconds: float) -> None:
        """A request took that long from its arrival to its end."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def check(self, num_answers: int, num_unfinished: int) -> None:
        """Raises Overloaded, or BadRequest if so many answers never fit."""
        if num_answers > self._capacity:
            raise BadRequest(
                f"n must be at most {self._capacity}, the engine's queue, got {num_answers}",
                param="n",
                code="invalid_value",
            )
        if num_unfinished + num_answers > self._capacity:
            # About when that many places will be free, were requests to end evenly spread.
            wait = self._mean_seconds * num_answers / self._limits.max_num_seqs
            raise Overloaded(
                f"the queue is full: {num_unfinished} of {self._capacity} places are taken",
                retry_after=min(max(wait, 1.0), MAX_RETRY_AFTER),
            )

    def check_tokens(self, num_tokens: int, num_waiting: int) -> None:
        """Raises Overloaded; an empty queue takes any prompt, or a long one could never run."""
        limit = self._limits.max_waiting_tokens
        if limit is not None and num_waiting and num_waiting + num_tokens > limit:
            raise Overloaded(
                f"the queue is full: prompts of {num_waiting} tokens wait in it, and "
                f"{num_tokens} more would exceed {limit}",
                retry_after=min(max(self._mean_seconds, 1.0), MAX_RETRY_AFTER),
            )
