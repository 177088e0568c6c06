"""Draws what the scheduler did, step by step, as docs/pictures/steps.svg. Not a measurement.

Ten requests in a pool too small for them, on the fake runner: three share a long prompt, one has a
prompt longer than a chunk. Every cell is one request in one step.
"""

from __future__ import annotations

import html
from pathlib import Path

from pellucid.config import CacheSettings, SchedulerSettings
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.fake import FakeRunner
from pellucid.sampling_params import SamplingParams

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "steps.svg"
COLOURS = {
    "prompt chunk": "#3b82c4",
    "from the prefix cache": "#8fc1e8",
    "next token": "#e8973a",
    "waiting": "#d4d4d4",
    "preempted": "#b3413a",
}
WIDTH, HEIGHT, LEFT, TOP = 15, 22, 44, 46


def requests() -> list[tuple[int, AddRequest]]:
    """(step of arrival, request)."""
    shared = list(range(500, 524))
    prompts = [
        (0, [1] * 10, 26),
        (0, [2] * 14, 30),
        (2, [*shared, 3], 22),
        (2, [*shared, 4, 4], 22),
        (4, list(range(900, 962)), 12),
        (8, [*shared, 5], 24),
        (10, [6] * 9, 28),
        (12, [7] * 12, 18),
        (14, [8] * 8, 20),
        (20, [9] * 11, 12),
    ]
    return [
        (
            step,
            AddRequest(
                request_id=str(index),
                prompt=pack_tokens(prompt),
                sampling=SamplingParams(max_tokens=answer),
                arrival_time=float(index),
            ),
        )
        for index, (step, prompt, answer) in enumerate(prompts)
    ]


def run() -> list[dict[str, tuple[str, int]]]:
    """Per step: request id -> (what happened, tokens)."""
    engine = EngineCore(
        FakeRunner(num_blocks=52, block_size=4),
        CacheSettings(),
        SchedulerSettings(max_num_seqs=8, max_chunk_tokens=16, max_num_batched_tokens=40),
    )
    scheduler, arrivals = engine.scheduler, requests()
    steps: list[dict[str, tuple[str, int]]] = []
    while arrivals or scheduler.requests:
        while arrivals and arrivals[0][0] <= len(steps):
            engine.add(arrivals.pop(0)[1])
        plan = scheduler.schedule(0.0)
        cells: dict[str, tuple[str, int]] = dict.fromkeys(scheduler.waiting, ("waiting", 0))
        cells |= {name: ("preempted", 0) for name in plan.dropped if name in scheduler.waiting}
        entered = {row.request_id for row in plan.new_rows}
        for chunk in plan.chunks:
            request = scheduler.requests[chunk.request_id]
            kind = "prompt chunk" if request.is_prefilling else "next token"
            if chunk.request_id in entered and chunk.start:
                kind = "from the prefix cache"
            cells[chunk.request_id] = (kind, chunk.num_tokens)
        steps.append(cells)
        if plan.chunks:
            scheduler.begin(plan)
            scheduler.update(plan, engine.runner.execute(plan).result(), 0.0)
    return steps


def draw(steps: list[dict[str, tuple[str, int]]]) -> str:
    names = sorted({name for cells in steps for name in cells}, key=int)
    width, height = LEFT + WIDTH * len(steps) + 12, TOP + HEIGHT * len(names) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    x = LEFT
    for label, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="12" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="22" fill="#333">{html.escape(label)}</text>')
        x += 34 + 6 * len(label)
    for row, name in enumerate(names):
        y = TOP + HEIGHT * row
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end" fill="#333">{name}</text>'
        )
        for column, cells in enumerate(steps):
            if name not in cells:
                continue
            kind, count = cells[name]
            left = LEFT + WIDTH * column
            parts.append(
                f'<rect x="{left}" y="{y}" width="{WIDTH - 2}" height="{HEIGHT - 4}" rx="2" '
                f'fill="{COLOURS[kind]}"/>'
            )
            if count > 1:
                parts.append(
                    f'<text x="{left + (WIDTH - 2) / 2}" y="{y + 13}" font-size="9" '
                    f'text-anchor="middle" fill="#fff">{count}</text>'
                )
    parts.append(
        f'<text x="{LEFT}" y="{height - 12}" fill="#333">step &#8594; (numbers: prompt tokens '
        "computed in that step)</text></svg>"
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(draw(run()), encoding="utf-8")
    print(f"drew {TARGET.relative_to(Path.cwd())}")
