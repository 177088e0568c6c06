"""The harness that measures other engines, with fakes in their place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from benchmarks.peers import __main__ as command
from benchmarks.peers import environments, process, report
from benchmarks.peers.environments import InstallError, Peer
from benchmarks.peers.fidelity import compare_answers
from benchmarks.peers.over_http import compare_http
from benchmarks.peers.plot import draw
from benchmarks.peers.process import DRIVERS, EngineError, EngineProcess
from benchmarks.peers.rounds import WARMUP_TOKENS, compare, take_turns
from benchmarks.peers.workloads import Workload, rates

LOAD = Workload("two", sequences=2, input_len=10, output_len=20)


class FakeEngine:
    """Takes a second for the prompts and `step` seconds for each token; fails when told to."""

    def __init__(
        self, calls: list[tuple[str, list[list[int]], int]], name: str, step: float
    ) -> None:
        self.calls, self.name, self.step, self.broken = calls, name, step, False

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        prompts, length = arguments["prompts"], arguments["output_len"]
        self.calls.append((self.name, prompts, length))
        if self.broken and len(self.calls) > 4:
            raise EngineError("out of memory")
        return {"times": [[1 + self.step * index for index in range(length)] for _ in prompts]}

    def cpu_seconds(self) -> float:
        return 0.0


@pytest.fixture
def engines() -> dict[str, FakeEngine]:
    calls: list[tuple[str, list[list[int]], int]] = []
    return {
        name: FakeEngine(calls, name, step) for name, step in (("pellucid", 0.1), ("peer", 0.3))
    }


def test_rates_tell_prefill_and_decode_apart() -> None:
    # Both run from second 2 to second 4; in it each gets two tokens.
    figures = rates([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], input_len=10)
    assert figures == {"prefill": 20 / 2, "decode": 4 / 2, "output": 8 / 5}
    assert rates([[0.5]], input_len=512) == {"prefill": 1024.0, "output": 2.0}


def test_engines_take_turns_on_the_same_prompts(engines: dict[str, FakeEngine]) -> None:
    turns, failed = take_turns(engines, LOAD, rounds=2, pause=0)
    calls = engines["peer"].calls
    assert [name for name, _, _ in calls] == ["pellucid", "peer"] * 3
    assert [length for _, _, length in calls] == [WARMUP_TOKENS] * 2 + [20] * 4
    prompts = [prompt for _, prompt, _ in calls]
    assert prompts[0::2] == prompts[1::2]
    assert len({str(prompt) for prompt in prompts}) == 3  # others in each turn
    assert all(len(prompt) == 10 for prompt in prompts[0])
    assert not failed
    ratio = compare(turns, 2)["peer"]["decode"]["pellucid_times_as_fast"]
    assert ratio == pytest.approx({"median": 3.0, "min": 3.0, "max": 3.0})


def test_who_fails_is_named_and_left_out(engines: dict[str, FakeEngine]) -> None:
    engines["peer"].broken = True
    turns, failed = take_turns(engines, LOAD, rounds=3, pause=0)
    assert failed == {"peer": "out of memory"}
    assert {name: len(each) for name, each in turns.items()} == {"pellucid": 3}


def test_short_answers_are_a_failure() -> None:
    class Hasty(FakeEngine):
        def call(self, op: str, **arguments: Any) -> dict[str, Any]:
            return super().call(op, **{**arguments, "output_len": 3})

    _, failed = take_turns({"peer": Hasty([], "peer", 0.1)}, LOAD, rounds=1, pause=0)
    assert "3" in failed["peer"]


def test_ratios_are_taken_round_by_round() -> None:
    def turns(*speeds: float) -> list[dict[str, float]]:
        return [
            {"prefill": 1.0, "output": 1.0, "decode": v, "waiting_cpu": 0.0, "foreign_cpu": 0.0}
            for v in speeds
        ]

    # The machine was half as fast in the second round: medians over rounds would say 2.5.
    entry = compare({"pellucid": turns(100, 50, 120), "peer": turns(50, 10, 40)}, 3)["peer"]
    assert entry["decode"]["pellucid_times_as_fast"] == {"median": 3.0, "min": 2.0, "max": 5.0}
    assert entry["decode"]["pellucid_tokens_per_s"]["median"] == 100


def test_http_counts_failures() -> None:
    def turn(output: float, failed: float) -> dict[str, float]:
        return {"output": output, "ttft_ms": 9.0, "tpot_ms": 1.0, "failed": failed}

    turns = {"pellucid": [turn(30, 0), turn(40, 0)], "peer": [turn(10, 2), turn(10, 1)]}
    entry = compare_http(turns, requests=8)["peer"]
    assert (entry["failed"], entry["requests"]) == (3, 16)
    assert entry["pellucid_times_as_fast"] == {"median": 3.5, "min": 3.0, "max": 4.0}


def test_fidelity_by_hand() -> None:
    oracle = {"tokens": [[1] * 48, [2] * 48], "logprobs": [-1.0, -2.0]}
    answer = {"tokens": [[1] * 48, [2] * 12 + [3] * 36], "logprobs": [-1.5, -2.0]}
    entry = compare_answers(answer, oracle)
    assert (entry["exact"], entry["mean_common_prefix"]) == (1, 30.0)
    assert entry["mean_logprob_distance"] == 0.25
    assert "perplexity" not in compare_answers({**answer, "logprobs": None}, oracle)


def test_a_failed_install_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FILE", tmp_path / "peers.json")
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "performance.md")
    report.DOCUMENT.touch()
    monkeypatch.setitem(environments.PEERS, "openvino", Peer("openvino", ("no-such-thing==1",)))
    pip = tmp_path / "openvino" / "env" / "bin" / "python"
    pip.parent.mkdir(parents=True)
    pip.write_text("#!/bin/sh\necho 'ERROR: No matching distribution'\nexit 1\n")
    pip.chmod(0o755)
    model = tmp_path / "model.gguf"
    model.touch()
    chosen = ["--engines", "openvino", "--workloads", "decode_1", "--model", str(model)]
    command.main(["--install-only", *chosen])
    assert "No matching distribution" in capsys.readouterr().out
    written = msgspec.json.decode((tmp_path / "peers.json").read_bytes())
    assert "No matching distribution" in written["unavailable"]["openvino"]


def test_a_missing_tool_is_an_install_error() -> None:
    with pytest.raises(InstallError, match="no-such-compiler"):
        environments.run(["no-such-compiler", "--version"])


@pytest.fixture
def engine_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineProcess:
    monkeypatch.setattr(process, "LOGS", tmp_path)
    script = tmp_path / "driver.py"
    script.write_text(
        "import os, sys\nfrom protocol import serve\n"
        "class Driver:\n"
        "    def echo(self, value):\n        print('chatter')\n        return {'value': value}\n"
        "    def fail(self):\n        raise MemoryError('no room')\n"
        "    def work(self):\n        while sum(os.times()[:2]) < 0.1:\n            pass\n"
        "        return {}\n"
        "    def die(self):\n        sys.exit('segmentation fault, as it were')\n"
        "serve(Driver())\n"
    )
    return EngineProcess("fake", Path(sys.executable), str(script), {"PYTHONPATH": str(DRIVERS)})


def test_an_engine_may_print_fail_and_die(engine_process: EngineProcess) -> None:
    with engine_process as engine:
        assert engine.call("echo", value=[1, 2]) == {"value": [1, 2]}
        with pytest.raises(EngineError, match="MemoryError: no room"):
            engine.call("fail")
        assert engine.call("echo", value=3) == {"value": 3}
        engine.call("work")  # the system counts in ticks: a shorter life may count as none
        assert engine.cpu_seconds() >= 0.1
        with pytest.raises(EngineError, match="segmentation fault"):
            engine.call("die")


def test_parts_add_up_in_the_file_of_one_machine(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    for name in ("first", "second"):
        figures = report.read(path)
        report.merge(figures, "in_process", "decode_1", {name: {"rounds": 3}})
        report.write(figures, path)
    assert set(report.read(path)["in_process"]["decode_1"]) == {"first", "second"}
    elsewhere = report.read(path)
    elsewhere["machine"]["cpu"] = "another"
    report.write(elsewhere, path)
    assert report.read(path)["in_process"] == {}


def test_tables_and_picture(tmp_path: Path, engines: dict[str, FakeEngine]) -> None:
    figures = report.read(tmp_path / "none.json")
    turns, _ = take_turns(engines, LOAD, rounds=1, pause=0)
    report.merge(figures, "in_process", "decode_8", compare(turns, 1))
    assert "| peer | 7 (3.00x) |" in report.in_process_table(figures)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- peers: in_process -->\nold\n<!-- end -->\nafter\n")
    report.fill(figures, page)
    assert report.in_process_table(figures) in page.read_text()
    assert "old" not in page.read_text()
    assert page.read_text().endswith("<!-- end -->\nafter\n")
    pytest.importorskip("matplotlib")
    draw(figures, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
