"""Who looks on at one engine, from the moment it is loaded until it is unloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from pellucid.config import ObserveSettings
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.observe import logs
from pellucid.observe.recording import Recording
from pellucid.observe.timeline import StepRing
from pellucid.observe.trace import Trace
from pellucid.server.metrics import Metrics


class Watch:
    """Listens to `llm`; `close` ends it. Raises ConfigError for a file that cannot be written.

    Args:
        tag: goes into the names of files, so that models do not share one; may be empty.
    """

    def __init__(self, llm: AsyncLLM, settings: ObserveSettings, tag: str) -> None:
        self.metrics = Metrics(llm)
        self.ring: StepRing | None = None
        self._ends: list[Callable[[], object]] = []
        llm.listeners.append(self.metrics)
        if settings.log_interval:
            log = logs.ThroughputLog(settings.log_interval, llm.info.num_kv_blocks, llm.model_name)
            llm.listeners.append(log)
        if settings.timelines:
            self.ring = StepRing()
            self._ends.append(llm.events.subscribe(self.ring))
        if settings.record is not None:
            path = tagged(settings.record, tag)
            recording = Recording(path, llm.info, tokens=settings.record_tokens)
            stop = llm.events.subscribe(recording, detail=True, tokens=settings.record_tokens)
            self._ends += [stop, recording.close]
        if settings.trace is not None:
            trace = Trace.to_path(tagged(settings.trace, tag), llm.model_name)
            self._ends += [llm.events.subscribe(trace), trace.close]

    def close(self) -> None:
        """Idempotent."""
        for end in self._ends:
            end()
        self._ends.clear()


def tag_of(name: str, *, several: bool, nth: int) -> str:
    """What tells the files of a model's `nth` loading from others; empty if there are none.

    >>> tag_of("org/model", several=True, nth=2)
    'org%2Fmodel.2'
    """
    parts = [quote(name, safe="")] if several else []
    return ".".join([*parts, *([str(nth)] if nth > 1 else [])])


def tagged(path: str, tag: str) -> str:
    """run.json -> run.TAG.json"""
    file = Path(path)
    return str(file.with_name(f"{file.stem}.{tag}{file.suffix}")) if tag else path
