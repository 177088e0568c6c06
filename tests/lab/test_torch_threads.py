"""Torch's threads, which engines set for the whole process, in experiments that compute beside."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pellucid.kernels import native
from pellucid.lab import caches, hugging_face
from pellucid.lab.experiment import Lab, run_experiment
from pellucid.lab.padded import PaddedBatches
from pellucid.lab.result import Findings
from tests.lab.test_experiments import LAB, module
from tests.lab.test_framework import SAMPLE, Settings, findings

THREADS = 3  # neither one nor, on most machines, the default


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = torch.get_num_threads()
    monkeypatch.setattr("pellucid.runner.device.compute_threads", lambda: THREADS)
    monkeypatch.setattr("pellucid.lab.torch_threads.compute_threads", lambda: THREADS)
    yield
    torch.set_num_threads(before)


def test_an_experiment_finds_the_same_threads_whatever_ran_before() -> None:
    seen = []

    def run(settings: Settings, lab: Lab) -> Findings:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)
        return findings(settings, lab)

    torch.set_num_threads(2)
    for _ in range(2):
        run_experiment(dataclasses.replace(SAMPLE, run=run), LAB, quick=True)
    assert seen == [THREADS, THREADS]
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(
    native.obstacle(torch.device("cpu")) is not None, reason="this engine leaves torch one thread"
)
@pytest.mark.parametrize(
    ("name", "settings", "works"),
    [
        (
            "kv_cache",
            {"prompt": 4, "tokens": 9, "repeats": 1},
            [(caches, "generate"), (hugging_face, "generate")],
        ),
        (
            "engines",
            {"prompt": 8, "answer": 4, "batches": [2], "repeats": 1},
            [(hugging_face, "decode")],
        ),
        (
            "ladder",
            {"requests": 3, "rate": 1000, "system": 17, "question": (2, 9), "mean_answer": 4}
            | {"max_answer": 8, "seats": 2, "budget": 16, "retry": 0.01, "repeats": 1},
            [(PaddedBatches, "answer")],
        ),
    ],
)
def test_torch_has_all_threads_where_it_is_compared_with_an_engine(
    name: str, settings: Any, works: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = module(name)
    seen: dict[Any, set[int]] = {}
    for owner, method in works:
        monkeypatch.setattr(owner, method, recorded(seen, owner, getattr(owner, method)))
    experiment.run(experiment.Settings(**settings), LAB)
    assert seen == {owner: {THREADS} for owner, _ in works}


def recorded(seen: dict[Any, set[int]], owner: Any, work: Any) -> Any:
    def recording(*args: Any, **kwargs: Any) -> Any:
        seen.setdefault(owner, set()).add(torch.get_num_threads())
        return work(*args, **kwargs)

    return recording
