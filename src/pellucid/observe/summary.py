"""A time line in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.observe.timeline import AnswerTimeline, TimelineStep

WHY = {
    "seats": "for a free seat (max_num_seqs)",
    "budget": "for a share of the step's tokens (max_num_batched_tokens)",
    "blocks": "for free KV blocks",
    "prefix": "for a prefix that another request was computing",
    "turn": "behind a request that did not fit",
    "step": "for the step that was under way",
}


def seconds(value: float) -> str:
    """1.84 s, or 12.1 ms below a second."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def summarize(answer: AnswerTimeline) -> str:
    """Where the time went, longest part first."""
    phases = answer.phases
    parts = {
        "in the queue": phases.queue,
        "prefill": phases.prefill,
        "decode": phases.decode,
        "stalled": phases.stalled,
        "in the front end": phases.front_end,
    }
    notes = {
        "in the queue": _waits([s for s in answer.steps if s.doing == "queue"]),
        "prefill": _prefill(answer),
        "decode": _decode(answer),
        "stalled": _waits([s for s in answer.steps if s.doing == "stalled"]),
    }
    told = []
    for name, value in sorted(parts.items(), key=lambda part: -part[1]):
        if value > 0:
            note = notes.get(name)
            told.append(f"{seconds(value)} {name}" + (f" ({note})" if note else ""))
    ending = f"; finished: {answer.finish_reason}" if answer.finish_reason else "; not finished"
    if answer.preemptions:
        ending = f"; preempted {_times(answer.preemptions)}" + ending
    if not answer.complete:
        ending += "; its first steps are not kept any more"
    return f"{seconds(sum(parts.values()))} in all: " + ", ".join(told) + ending


def _waits(steps: list[TimelineStep]) -> str:
    spent: dict[str, float] = {}
    for step in steps:
        spent[step.why or ""] = spent.get(step.why or "", 0.0) + step.seconds
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    if len(ranked) == 1:
        return WHY[ranked[0][0]]
    return ", ".join(f"{seconds(value)} {WHY[why]}" for why, value in ranked)


def _prefill(answer: AnswerTimeline) -> str:
    served = [step for step in answer.steps if step.doing == "prefill"]
    tokens = sum(step.tokens for step in served)
    text = f"{_count(tokens, 'token')} in {_count(len(served), 'step')}"
    return text + (f", {answer.cached_tokens} from the cache" if answer.cached_tokens else "")


def _decode(answer: AnswerTimeline) -> str:
    served = [step for step in answer.steps if step.doing == "decode"]
    tokens = sum(step.generated for step in served)
    if not tokens:
        return ""
    each = answer.phases.decode / tokens
    return f"{_count(tokens, 'token')} in {_count(len(served), 'step')}, {seconds(each)} each"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
