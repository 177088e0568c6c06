"""What else the machine computed while something was measured."""

from __future__ import annotations

import psutil


class Neighbours:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._begin = self._seconds()

    def share(self) -> float:
        """Of the time of all cores, how much went to other processes: 0 to 1."""
        whole, busy, own = (
            now - then for now, then in zip(self._seconds(), self._begin, strict=True)
        )
        return min(1.0, max(0.0, busy - own) / whole) if whole else 0.0

    def _seconds(self) -> tuple[float, float, float]:
        """All cores' time, what of it was not idle, and what of that was this process's.

        A child's time counts as its own, but only once the child was waited for.
        """
        times, own = psutil.cpu_times(), self._process.cpu_times()
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        mine = own.user + own.system + own.children_user + own.children_system
        return whole, whole - idle, mine


def caution(share: float) -> str:
    """What to tell of a result that was measured beside others."""
    return (
        f"Not to be relied on: other processes took {share:.0%} of the machine's time meanwhile,"
        " which slows down most those programs whose threads wait for each other."
    )
