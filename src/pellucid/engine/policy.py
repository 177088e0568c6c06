"""Scheduling policies: who goes first, and who must step back when memory runs out.

A policy of your own is a class with these methods, named on the command line by its import path:
`--policy mypackage.mymodule:MyPolicy`. It is called with requests only and must not keep them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module

from pellucid.engine.request import Request
from pellucid.errors import ConfigError

Order = tuple[float, ...]


class SchedulingPolicy:
    """Base of all policies. Only `order` has to be written."""

    def order(self, request: Request, now: float) -> Order:
        """Place in the queue; smaller goes first. `now` is in seconds, like `arrival_time`."""
        raise NotImplementedError

    def victim(self, running: Sequence[Request], now: float) -> Request:
        """Whom to preempt: by default the one that would have been admitted last."""
        return max(running, key=lambda request: self.order(request, now))

    def enter(self, request: Request) -> None:
        """A request joined the engine."""

    def charge(self, request: Request, num_tokens: int) -> None:
        """A step will compute `num_tokens` for the request."""

    def leave(self, request: Request) -> None:
        """The request ended, in whatever way."""


class Fifo(SchedulingPolicy):
    """First come, first served."""

    def order(self, request: Request, now: float) -> Order:
        return (request.arrival_time,)


class Priority(SchedulingPolicy):
    """Smaller `priority` first, then by arrival."""

    def order(self, request: Request, now: float) -> Order:
        return (request.priority, request.arrival_time)


class ShortestFirst(SchedulingPolicy):
    """Fewest tokens left first: the lowest mean latency, at the price of long requests.

    What is left is counted up to `max_tokens`, the only bound known in advance. Waiting is
    rewarded, so that a long request is delayed but never starved.
    """

    tokens_per_second_waited = 50.0

    def order(self, request: Request, now: float) -> Order:
        left = request.max_total_tokens - request.num_computed_tokens
        waited = now - request.arrival_time
        return (left - waited * self.tokens_per_second_waited, request.arrival_time)


class FairShare(SchedulingPolicy):
    """Each user gets an equal share of computed tokens, however many requests they send.

    The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI
    2024): the user who was served least goes first, and one who returns after a pause is lifted to
    the least served of those present, so that a pause is not saved up.
    """

    max_remembered_users = 10_000

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._present: Counter[str] = Counter()

    def order(self, request: Request, now: float) -> Order:
        return (self._served.get(request.user or "", 0.0), request.arrival_time)

    def enter(self, request: Request) -> None:
        user = request.user or ""
        if not self._present[user]:
            floor = min((self._served[u] for u in self._present), default=0.0)
            self._served[user] = max(self._served.get(user, 0.0), floor)
        self._present[user] += 1

    def charge(self, request: Request, num_tokens: int) -> None:
        self._served[request.user or ""] += num_tokens

    def leave(self, request: Request) -> None:
        user = request.user or ""
        self._present[user] -= 1
        if not self._present[user]:
            del self._present[user]
        if len(self._served) > self.max_remembered_users:
            self._served = {u: self._served[u] for u in self._present}


POLICIES: dict[str, type[SchedulingPolicy]] = {
    "fifo": Fifo,
    "priority": Priority,
    "shortest-first": ShortestFirst,
    "fair-share": FairShare,
}


def load_policy(name: str) -> SchedulingPolicy:
    """A policy by its name, or by `package.module:Class`. Raises ConfigError."""
    if name in POLICIES:
        return POLICIES[name]()
    module_name, colon, class_name = name.partition(":")
    if not colon:
        known = ", ".join(POLICIES)
        raise ConfigError(
            f"policy: {name!r} is none of {known} and no package.module:Class", param="policy"
        )
    try:
        policy = getattr(import_module(module_name), class_name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"policy: cannot load {name!r}: {error}", param="policy") from None
    missing = [m for m in ("order", "victim", "enter", "charge", "leave") if not hasattr(policy, m)]
    if missing:
        raise ConfigError(
            f"policy: {name!r} lacks {', '.join(missing)}; derive it from "
            "pellucid.engine.policy.SchedulingPolicy",
            param="policy",
        )
    loaded: SchedulingPolicy = policy
    return loaded
