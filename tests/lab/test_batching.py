"""Batching: what is computed is counted by hand, and padding changes no text."""

from __future__ import annotations

import pytest

from pellucid.kernels import dispatch
from pellucid.kernels.reference import ReferenceOps
from tests.lab.test_experiments import LAB, check, module


@pytest.mark.parametrize("kernels", ["best", "reference"])
def test_batching(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "reference":
        monkeypatch.setattr(dispatch, "BACKENDS", (dispatch.Backend("reference", ReferenceOps),))
    experiment = module("batching")
    settings = experiment.Settings(
        requests=6, batch=3, prompt=(4, 12), mean_answer=6, max_answer=16, repeats=1
    )
    findings = experiment.run(settings, LAB)
    check(findings)
    rows = {row[0]: row for row in findings.tables[0].rows}
    assert list(rows) == ["sequential", "static", "continuous, padded", "continuous, paged"]
    assert {row[-1] for row in rows.values()} == {"yes"}  # padding changes no text
    runs, jobs = findings.raw["runs"], findings.raw["jobs"]
    computed = {name: made[0]["computed"] for name, made in runs.items()}
    wanted = sum(prompt + answer - 1 for prompt, answer in jobs)
    assert computed == {
        "sequential": wanted,
        "static": sum(
            3 * (max(p for p, _ in wave) + max(a for _, a in wave) - 1)
            for wave in (jobs[:3], jobs[3:])
        ),
        "continuous, padded": positions_of_rectangles(jobs, seats=3),
        "continuous, paged": wanted,
    }
    assert wanted < computed["continuous, padded"] != computed["static"]
    assert rows["continuous, padded"][7] == pytest.approx(
        100 * (1 - wanted / computed["continuous, padded"])
    )
    assert len(set(runs["static"][0]["ends"])) == 2  # a batch ends together
    assert len(set(runs["continuous, padded"][0]["ends"])) > 2
    names = {figure.name for figure in findings.figures}
    assert {"timeline-continuous-padded", "timeline-continuous-paged"} < names


def positions_of_rectangles(jobs: list[list[int]], seats: int) -> int:
    """First come, first served; every step is as wide as the widest share of those in it."""
    waiting, running, positions = [list(job) for job in jobs], list[list[int]](), 0
    while waiting or running:
        while waiting and len(running) < seats:
            running.append(waiting.pop(0))
        positions += len(running) * max(share for share, _ in running)
        running = [[1, answer - 1] for _, answer in running if answer > 1]
    return positions


def test_batching_says_which_is_best() -> None:
    conclude = module("batching")._conclusion
    rows = [
        ["sequential", 10.0, 0, 0, 1.0, 1.0, 100, 0.0, "yes"],
        ["static", 20.0, 0, 0, 3.0, 1.0, 170, 40.0, "yes"],
        ["continuous, padded", 4.0, 0, 0, 2.5, 1.0, 400, 75.0, "yes"],
        ["continuous, paged", 5.0, 0, 0, 2.0, 1.0, 100, 0.0, "yes"],
    ]
    text = " ".join(conclude(rows, 8))
    assert "brings 0.50 times" in text
    assert "0.25 times those of static batches, which waste 40%" in text
    assert "1.25 times those of padded steps, which waste 75%" in text
    assert "padded steps bring 0.20 times those of static batches" in text
    assert "was expected: continuous, padded brings 0.40 times as many, continuous, paged" in text
    assert text.endswith("the lowest is that of sequential; all four wrote the same text.")
    fast = [[*row[:1], 10.0 + n, *row[2:]] for n, row in enumerate(rows)]
    assert conclude(fast, 8)[0].endswith("As expected, all beat one after the other.")
    rows[2][-1] = "no"
    assert conclude(rows, 8)[1].endswith("not the text of sequential has continuous, padded.")
