"""The lab's servers: how they compute, what they count, and what is said of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import pytest
import torch

from pellucid.config import ModelSettings
from pellucid.engine.policy import SchedulingPolicy
from pellucid.engine.request import Request
from pellucid.kernels import dispatch
from pellucid.kernels.reference import ReferenceOps
from pellucid.lab import hugging_face
from pellucid.lab.padded import PaddedBatches
from pellucid.lab.rungs import BatchServer, Job, Outcome, Served
from pellucid.lab.subject import RANDOM_MODEL, Subject
from pellucid.models.base import Model
from pellucid.models.registry import build_model
from tests.lab.test_experiments import LAB, check, module

CPU = torch.device("cpu")
KEPT = ("nothing", "prefix", "all")


@pytest.fixture(scope="module")
def model() -> Model:
    weights = LAB.subject.open_weights()
    return build_model(RANDOM_MODEL, weights, ReferenceOps(), torch.float32, CPU, 64)


def answers(batches: PaddedBatches, prompts: list[list[int]], lengths: list[int]) -> Any:
    told: list[list[int]] = [[] for _ in prompts]
    batches.answer(prompts, lengths, lambda row, token: told[row].append(token))
    return told


# ---- padded batches


@pytest.mark.parametrize("kept", KEPT)
def test_padding_and_what_is_kept_do_not_change_the_text_of_transformers(
    model: Model, kept: Any
) -> None:
    other = hugging_face.load(RANDOM_MODEL, LAB.subject.open_weights())
    beginning = LAB.subject.prompt(20, seed=1)
    batches = PaddedBatches(model, torch.float32, 3, 64, kept)
    for seed, lengths in ((2, [3, 9, 1]), (3, [7, 2])):  # the second finds the first's beginning
        prompts = [beginning + LAB.subject.prompt(4 * i + 1, seed + i) for i in range(len(lengths))]
        assert answers(batches, prompts, lengths) == [
            hugging_face.generate(other, prompt, length, use_cache=True).token_ids
            for prompt, length in zip(prompts, lengths, strict=True)
        ]


@pytest.mark.parametrize(
    ("kept", "positions", "wasted"),
    [
        # Columns of 3 steps over 2 rows, of which the second's answer ends after the first step.
        ("nothing", 2 * (9 + 10 + 11), (4 + 0) + (4 + 10) + (4 + 11)),
        ("all", 2 * (9 + 1 + 1), (4 + 0) + 1 + 1),
    ],
)
def test_wasted_positions_are_those_of_padding_and_of_ended_answers(
    model: Model, kept: Any, positions: int, wasted: int
) -> None:
    batches = PaddedBatches(model, torch.float32, 2, 16, kept)
    answers(batches, [LAB.subject.prompt(5, 1), LAB.subject.prompt(9, 2)], [3, 1])
    assert (batches.positions, batches.wasted) == (positions, wasted)


def test_a_kept_beginning_is_computed_once_in_whole_blocks(model: Model) -> None:
    batches = PaddedBatches(model, torch.float32, 2, 64, "prefix")
    beginning = LAB.subject.prompt(35, seed=1)
    prompts = [[*beginning, 3, 4], [*beginning, 5, 6]]
    answers(batches, prompts, [2, 2])
    own = 2 * ((37 - 32) + (38 - 32))
    assert batches.positions == 32 + own
    answers(batches, prompts, [2, 2])
    assert batches.positions == 32 + 2 * own
    answers(batches, [LAB.subject.prompt(37, seed=2)], [1])  # begins otherwise
    assert batches.positions == 32 + 2 * own + 37


# ---- ladder


def settings(experiment: Any, **changes: Any) -> Any:
    small = experiment.Settings(
        requests=5,
        rate=1000,
        system=17,
        question=(2, 9),
        mean_answer=4,
        max_answer=8,
        seats=2,
        budget=16,
        retry=0.01,
        repeats=2,
    )
    return msgspec.structs.replace(small, **changes)


def test_ladder() -> None:
    experiment = module("ladder")
    findings = experiment.run(settings(experiment), LAB)
    check(findings)
    table = findings.tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    native = {"8 native"} if any("native" in name for name in rows) else set()
    assert [name.partition(" ")[0] for name in rows] == list("01234567") + ["8"] * len(native)
    assert {name for name, row in rows.items() if row["text of rung 0"] != "yes"} <= native
    for outcomes in zip(*findings.raw.values(), strict=True):  # the rungs of a round
        assert len({tuple(one["arrival"] for one in made["served"]) for made in outcomes}) == 1
        lengths = [len(one["token_ids"]) for one in outcomes[0]["served"]]
        prompts = [len(job.prompt) for job in jobs_of(experiment, outcomes, findings)]
        again = sum(p + i for p, n in zip(prompts, lengths, strict=True) for i in range(n))
        assert [made["positions"] for made in outcomes[:3]] == [again] * 3
        assert outcomes[3]["positions"] - outcomes[3]["wasted"] == again
        assert outcomes[4]["positions"] < outcomes[3]["positions"]
        for made in outcomes[6:]:  # each token once but the last, less what the cache had
            found = sum(one["num_cached_tokens"] for one in made["served"])
            assert made["positions"] == sum(prompts) + sum(lengths) - len(lengths) - found
    assert any("Speculation" in note for note in findings.notes)


def jobs_of(experiment: Any, outcomes: Any, findings: Any) -> list[Job]:
    """The load of a round, made again from its seed."""
    repeat = next(i for i, made in enumerate(findings.raw["2 queue"]) if made == outcomes[2])
    jobs: list[Job] = experiment._jobs(settings(experiment), LAB, 1000 * repeat)
    return jobs


def test_ladder_without_native_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = module("ladder")
    monkeypatch.setattr(dispatch, "BACKENDS", (dispatch.Backend("reference", ReferenceOps),))
    findings = experiment.run(settings(experiment, repeats=1, requests=2), LAB)
    assert [row[0] for row in findings.tables[1].rows][-1] == "7 paged"
    assert any("8 native is missing" in note for note in findings.notes)


def test_who_is_sent_away_comes_again_and_who_waits_is_served_in_order() -> None:
    jobs = [Job(0.0, [1], 1), Job(0.2, [1], 1), Job(0.45, [1], 1)]
    impatient = BatchServer(make=lambda: pytest.fail("not asked for"), queue=False, retry=0.5)
    assert impatient._knock(jobs[1], 0.1) == pytest.approx(0.2)  # has not come yet
    assert impatient._knock(jobs[1], 0.9) == pytest.approx(1.2)
    assert impatient._knock(jobs[2], 0.9) == pytest.approx(0.95)  # overtakes
    long_ago = -100.0  # when the load began, so that nobody has to be waited for
    line = BatchServer(make=impatient.make, seats=2)
    assert line._choose(jobs, [1, 2], long_ago) == [1, 2]
    assert BatchServer(make=impatient.make)._choose(jobs, [1, 2], long_ago) == [1]


def outcome(seconds: float, positions: int, computing: float) -> Outcome:
    one = Served(0.0, finished=seconds, token_ids=[1] * 10, token_times=[seconds] * 10)
    return Outcome([one], positions, 0, computing)


def test_a_rung_is_told_by_three_factors() -> None:
    experiment = module("ladder")
    slow, fast = outcome(10.0, 100, 5.0), outcome(2.0, 20, 2.0)
    climb = experiment._climb(slow, fast)
    assert climb.ratio == pytest.approx(5)
    assert climb.ratio == pytest.approx(climb.work * climb.speed * climb.busy)
    up = experiment.verdict([climb], 0.0)
    assert up == "yes: 5.0x fewer positions, 2.0x less idle but each 2.0x slower"
    down = experiment.verdict([experiment._climb(fast, slow)], 0.0)
    assert down == "no: 5.0x more positions, 2.0x more idle but each 2.0x faster"
    assert experiment.verdict([experiment._climb(slow, slow)], 0.0) == "level"
    # Where the same computing took 6 times as long once, 5 times as fast means nothing.
    noisy = experiment.verdict([climb], math.log(6))
    assert noisy == "level: 5.0x fewer positions, 2.0x less idle"


def test_ladder_admits_what_does_not_hold() -> None:
    experiment = module("ladder")
    rows = [[name, rate, 0, 0, 1.0, 2.0, 1.0, 1, 0, 90, same] for name, rate, same in ROWS]
    outcomes = {name: outcome(1 / rate, 10, 1 / rate) for name, rate, _ in ROWS}
    climbs = {
        name: [experiment._climb(outcomes[below], outcomes[name])]
        for below, name in itertools.pairwise(outcomes)
    }
    first, second = experiment._conclusion(rows, climbs, 0.0)
    assert "the highest step is 8 native, 30.0 times" in first
    assert "not 5 KV cache with its 0.5, as was expected" in first
    assert second.startswith("Not above the one below: 5 KV cache (0.50 times, each 2.0x slower)")
    assert second.endswith("these did not write it: 5 KV cache (3 of 4).")


ROWS = [("0 load each", 4.0, "yes"), ("5 KV cache", 2.0, "3 of 4"), ("8 native", 60.0, "1 of 4")]


# ---- engines


def test_engines() -> None:
    experiment = module("engines")
    findings = experiment.run(
        experiment.Settings(prompt=12, answer=6, batches=[1, 3], repeats=2), LAB
    )
    check(findings)
    names = {row[0]: row[1:] for row in findings.tables[0].rows}
    assert next(iter(names)) == "pellucid"
    assert set(names["llama.cpp runner (absent)"]) == {None}
    assert any("absent: --runner llama-cpp takes no random weights" in n for n in findings.notes)
    like_ours = {row[0]: row[2] for row in findings.tables[2].rows}
    assert like_ours["pellucid"] == 6
    assert like_ours["transformers float32"] >= 3  # the same model: half of it, rounding or not
    for rounds in findings.raw.values():
        assert all({"pellucid", "transformers float32"} <= one.keys() for one in rounds)


def test_a_batch_under_transformers_is_its_rows_alone() -> None:
    other = hugging_face.load(RANDOM_MODEL, LAB.subject.open_weights())
    prompts = [LAB.subject.prompt(9, seed) for seed in range(3)]
    made, times = hugging_face.decode(other, prompts, 8)
    assert made == [
        hugging_face.generate(other, prompt, 8, use_cache=False).token_ids for prompt in prompts
    ]
    assert times == sorted(times)


def test_decode_counts_while_all_run() -> None:
    experiment = module("engines")
    made = experiment.Answers([[1] * 3] * 2, [[1.0, 2.0, 3.0], [2.0, 3.0, 5.0]])
    rates = experiment.rates([[7] * 4] * 2, made)
    assert rates.prefill == pytest.approx(8 / 2.0)
    assert rates.decode == pytest.approx(2 / 1.0)  # two tokens between the seconds 2 and 3


def test_engines_say_who_is_fastest_and_whether_widening_costs_less() -> None:
    experiment = module("engines")
    prefill = [["pellucid", 1.0, 50.0, 0, 0, 1.0], ["transformers x", 1.0, 100.0, 0, 0, 0.5]]
    decode = [["pellucid", 1.0, 40.0, 0, 0, 1.0], ["transformers x", 1.0, 10.0, 0, 0, 4.0]]
    about = [["pellucid", 10.0, 8], ["transformers x", 30.0, 8]]
    first, second = experiment._conclusion(prefill, decode, about)
    assert "pellucid is fastest, 40 tokens/s, 4.0 times transformers x" in first
    assert "transformers x reads 3.0 times the bytes and takes 4.0 times as long" in first
    assert first.endswith(": the bytes explain that.")
    about[1][1] = 20.0
    told = experiment._conclusion(prefill, decode, about)[0]
    assert told.endswith(": the bytes alone do not explain that.")
    assert "transformers x is fastest, 100 tokens/s, 2.0 times pellucid" in second
    assert "Widened weights cost less there" in second
    assert "do not cost less there" in experiment._conclusion(decode, prefill, about)[1]


# ---- schedulers with a policy of one's own


class LastComeFirst(SchedulingPolicy):
    def order(self, request: Request, now: float) -> tuple[float, ...]:
        return (-request.arrival_time,)


def test_a_policy_of_ones_own_is_compared_with_ours() -> None:
    experiment = module("schedulers")
    own = f"{__name__}:LastComeFirst"
    findings = experiment.run(experiment.Settings(requests=60, seeds=2, policy=own), LAB)
    check(findings)
    assert list(findings.raw) == ["fifo", "priority", "shortest-first", "fair-share", own]
    assert own in {row[0] for row in findings.tables[1].rows}
    rows = [["fifo: short", 5.0, 0, 0, 6.0, 7.0], [f"{own}: short", 1.0, 0, 0, 2.0, 9.0]]
    text = " ".join(experiment._conclusion(rows, {"fifo": 4.0, own: 8.0}))
    assert f"wait least under {own}, 1.00 s" in text
    arrivals = [experiment.Arrival("short", "a", at, 64, 8) for at in (0.0, 0.001, 0.002)]
    one_seat = experiment.Settings(requests=3, seeds=1, seats=1)
    queued = [fate["queue"] for fate in experiment.simulate(one_seat, arrivals, own)]
    assert queued[0] < queued[2] < queued[1]


def test_a_shared_model_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(ModelSettings(model="random"), None)
    shared = subject.reference(32)
    monkeypatch.setattr(Subject, "open_weights", lambda self: pytest.fail("loads again"))
    core = subject.engine(model=shared, max_model_len=32, num_kv_blocks=4, max_num_seqs=2)
    assert core.info.kernels == "reference"
    core.runner.close()
