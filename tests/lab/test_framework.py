"""The lab without its experiments: finding, fitting, writing, joining."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.config import ModelSettings
from pellucid.errors import ConfigError
from pellucid.lab import draw, experiments
from pellucid.lab.experiment import (
    Experiment,
    Lab,
    changed,
    choose,
    find_experiments,
    run_experiment,
    share_out,
)
from pellucid.lab.fit import power_law, slope, spread
from pellucid.lab.neighbours import Neighbours
from pellucid.lab.report import markdown, read_results, shown, write_report, write_result
from pellucid.lab.result import Figure, Findings, Law, Series, Span, Table
from pellucid.lab.subject import Subject
from tests.cli.helpers import runner

FOLDER = Path(experiments.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


class Settings(msgspec.Struct, frozen=True):
    size: int


def findings(settings: Settings, lab: Lab) -> Findings:
    x = [1.0, 2.0, 3.0]
    low, high = [0.5, 1.0, 2.0], [1.5, 3.0, 4.0]
    curves = [
        Series(name="curve", x=x, y=[1.0, 2.0, 3.0], low=low, high=high),
        Series(name="other", x=x, y=[2.0, 2.0, 2.0], style="dashed"),
    ]
    bars = [Series(name="a", x=[0.0, 1.0], y=[1.0, 2.0], low=[1, 1], high=[2, 3], style="bars")]
    layers = [Series(name=name, x=x, y=[1.0, 2.0, 1.0], style="area") for name in ("top", "low")]
    spans = [Span("one", 0.0, 1.0, "busy"), Span("two", 0.5, 2.0, "idle")]
    about = {"x_label": "x", "y_label": "y"}
    return Findings(
        tables=[Table("Sizes", ["what", "value"], [["<size>", float(settings.size)]])],
        figures=[
            Figure(name="curve", title="Curve", series=curves, log_x=True, log_y=True, **about),
            Figure(name="bars", title="Bars", series=bars, ticks=["left", "right"], **about),
            Figure(name="layers", title="Layers", series=layers, **about),
            Figure(name="spans", title="Spans", spans=spans, **about),
        ],
        raw={"size": settings.size},
        laws=[Law(name="it", x="n", y="s", exponent=2.0, factor=1.0, r2=1.0, points=3)],
        notes=["a note"],
        conclusion=[f"The size is {settings.size}."],
    )


SAMPLE = Experiment("sample", "Why?", "So.", "Thus.", Settings(1), Settings(2), findings)
LAB = Lab(Subject(ModelSettings(), None))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine computes beside the tests."""
    monkeypatch.setattr(Neighbours, "share", lambda self: 0.0)


@given(
    exponent=st.floats(-3, 3),
    factor=st.floats(0.01, 100),
    seed=st.integers(0, 1000),
)
def test_a_power_law_is_found_again(exponent: float, factor: float, seed: int) -> None:
    x = np.geomspace(1, 1000, 50)
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.01, 50))
    law = power_law("synthetic", x.tolist(), (factor * x**exponent * noise).tolist(), of=("n", "s"))
    assert law.exponent == pytest.approx(exponent, abs=0.01)
    assert law.factor == pytest.approx(factor, rel=0.05)
    assert law.points == 50


def test_r2_tells_a_law_from_noise() -> None:
    x = list(map(float, range(1, 50)))
    assert power_law("square", x, [a * a for a in x], of=("", "")).r2 == pytest.approx(1.0)
    noise = np.random.default_rng(0).uniform(1, 100, 49).tolist()
    assert power_law("noise", x, noise, of=("", "")).r2 < 0.3


def test_a_law_needs_two_points() -> None:
    with pytest.raises(ValueError, match="two different points"):
        power_law("one", [1.0, 1.0, 2.0], [1.0, 2.0, 0.0], of=("", ""))


def test_line_and_spread() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == pytest.approx((5, 2))
    assert spread([3.0, 1.0, 10.0]).median == 3.0
    assert (spread([3.0, 1.0, 10.0]).low, spread([3.0, 1.0, 10.0]).high) == (1.0, 10.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])


def test_every_module_of_the_folder_is_an_experiment() -> None:
    found = find_experiments()
    assert sorted(found) == sorted(name.replace("_", "-") for name in MODULES)
    for experiment in found.values():
        assert experiment.question.endswith("?")
        assert type(experiment.quick) is type(experiment.full)


@pytest.mark.parametrize("removed", MODULES)
def test_a_removed_experiment_breaks_nothing_else(
    removed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "experiments"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / f"{removed}.py").unlink()
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"{experiments.__name__}.{name}", raising=False)
        monkeypatch.delattr(experiments, name, raising=False)
    monkeypatch.setattr(experiments, "__path__", [str(folder)])
    importlib.invalidate_caches()
    left = sorted(name.replace("_", "-") for name in MODULES if name != removed)
    assert sorted(find_experiments()) == left
    listed = runner(capsys)("lab", "list")
    assert listed.code == 0
    assert set(left) <= {line.split()[0] for line in listed.out.splitlines()}


def test_nobody_names_an_experiment() -> None:
    root = FOLDER.parents[1]
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("pellucid.lab.experiments."), path


def test_a_result_tells_where_it_was_measured_and_can_be_read_again(tmp_path: Path) -> None:
    result = run_experiment(SAMPLE, LAB, quick=True)
    write_result(result, tmp_path)
    plain = json.loads((tmp_path / "sample.json").read_text())
    assert plain["machine"]["cpu"]
    assert plain["versions"]["python"]
    assert "transformers" in plain["versions"]
    assert plain["settings"] == {"size": 1}
    assert plain["findings"]["raw"] == {"size": 1}
    assert read_results(tmp_path) == [result]
    for figure in ("curve", "bars", "layers", "spans"):
        picture = tmp_path / f"sample-{figure}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_quick_and_full_are_run_with_their_own_settings() -> None:
    assert run_experiment(SAMPLE, LAB, quick=True).findings.conclusion == ["The size is 1."]
    assert run_experiment(SAMPLE, LAB, quick=False).findings.conclusion == ["The size is 2."]


def test_the_report_joins_a_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        result = run_experiment(SAMPLE, LAB, quick=True)
        write_result(msgspec.structs.replace(result, name=name), tmp_path)
    text = write_report(tmp_path).read_text()
    assert text.index("## first") < text.index("## second")
    for link in ("first-curve.png", "second-spans.png"):
        assert f"({link})" in text
        assert (tmp_path / link).exists()
    page = (tmp_path / "report.html").read_text()
    assert "&lt;size&gt;" in page  # what a result says is text, not markup
    assert page.count("Plotly.newPlot") == 8
    assert page.count('"stackgroup"') >= 4  # areas lie on each other
    assert page.count(f'src="{draw.BUNDLE}"') == 1
    assert len(page) < 200_000  # the script lies beside the pages, once
    assert [path.name for path in tmp_path.glob("*.js")] == [draw.BUNDLE]


def test_a_report_can_be_drawn_anew_of_the_numbers_alone(tmp_path: Path) -> None:
    write_result(run_experiment(SAMPLE, LAB, quick=True), tmp_path)
    drawn = {path: path.read_bytes() for path in tmp_path.glob("sample*.png")}
    for path in (*drawn, page := tmp_path / "sample.html"):
        path.unlink()
    write_report(tmp_path, redraw=True)
    assert drawn == {path: path.read_bytes() for path in drawn}
    assert page.exists()


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results in"):
        read_results(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json is no result"):
        read_results(tmp_path)
    future = msgspec.structs.replace(run_experiment(SAMPLE, LAB, quick=True), format=99)
    (tmp_path / "other.json").write_bytes(msgspec.json.encode(future))
    with pytest.raises(ConfigError, match="format 99"):
        read_results(tmp_path)


def test_cells_have_the_digits_that_mean_something() -> None:
    cells = [None, "text", 3.0, 1234.5, 123.45, 1.2345, 0.00012345]
    assert [shown(cell) for cell in cells] == [
        *("-", "text", "3", "1,234", "123.5", "1.23", "0.000123")
    ]


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    lines = markdown([run_experiment(SAMPLE, LAB, quick=True)]).splitlines()
    sizes = {line.count("|") for line in lines if "what" in line or "<size>" in line}
    assert sizes == {3}


def test_unknown_experiments_are_refused_by_name() -> None:
    known = next(iter(find_experiments()))
    with pytest.raises(ConfigError, match=f"did you mean {known}"):
        choose([known[:-1]], every=False)
    with pytest.raises(ConfigError, match="--all"):
        choose([], every=False)
    with pytest.raises(ConfigError, match=f"leave out {known}, or --all"):
        choose([known], every=True)
    assert [one.name for one in choose([], every=True)] == list(find_experiments())


def test_without_its_packages_the_lab_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ConfigError, match=r"plotly: pip install 'pellucid\[lab\]'"):
        draw.check_extra()


class Several(msgspec.Struct, frozen=True):
    sizes: list[int]
    count: int = 3
    names: tuple[str, ...] = ("a",)
    span: tuple[int, int] = (1, 2)
    seed: int = 0
    own: str | None = None


def test_settings_are_changed_by_name() -> None:
    experiment = with_settings(Several([1, 2]))
    changes = ["count=5", "sizes=8,16", "names=x,y:Z", "span=3,4", "seed=0", "own=m:C"]
    made = changed(experiment, experiment.quick, changes)
    assert made == Several([8, 16], 5, ("x", "y:Z"), (3, 4), 0, "m:C")
    assert run_experiment(SAMPLE, LAB, quick=True, changes=["size=7"]).settings == {"size": 7}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("counts=5", "sample has the settings sizes, count"),
        ("count", "sample has the settings"),
        ("count=many", "Expected `int`"),
        ("count=0", "count=0: must be more than 0"),
        ("sizes=4,-1", "sizes=-1: must be more than 0"),
        ("span=1,2,3", "Expected `array` of length 2"),
        ("seed=-1", "seed=-1"),
    ],
)
def test_what_cannot_be_set_is_named(change: str, why: str) -> None:
    experiment = with_settings(Several([1, 2]))
    with pytest.raises(ConfigError, match=why):
        changed(experiment, experiment.quick, [change])


def test_with_all_a_setting_is_changed_where_there_is_one() -> None:
    chosen = [SAMPLE, named("several", Several([1, 2]))]
    given = share_out(chosen, ["size=7", "count=5"], every=True, quick=True)
    assert given == {"sample": ["size=7"], "several": ["count=5"]}
    with pytest.raises(ConfigError, match="--set counts=5: no experiment has such a setting"):
        share_out(chosen, ["size=7", "counts=5"], every=True, quick=True)
    with pytest.raises(ConfigError, match="Expected `int`"):
        share_out(chosen, ["count=many"], every=True, quick=True)
    with pytest.raises(ConfigError, match="several has the settings sizes, count"):
        share_out(chosen, ["size=7"], every=False, quick=True)


def named(name: str, settings: msgspec.Struct) -> Experiment:
    return dataclasses.replace(with_settings(settings), name=name)


def with_settings(settings: msgspec.Struct) -> Experiment:
    return Experiment("sample", "Why?", "So.", "Thus.", settings, settings, findings)


def test_a_result_says_that_others_computed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Neighbours, "share", lambda self: 0.05)
    assert run_experiment(SAMPLE, LAB, quick=True).findings.conclusion == ["The size is 1."]
    monkeypatch.setattr(Neighbours, "share", lambda self: 0.45)
    told = run_experiment(SAMPLE, LAB, quick=True).findings.conclusion
    assert told[0].startswith("Not to be relied on: other processes took 45%")
    assert told[1:] == ["The size is 1."]


def test_the_time_of_others_is_what_is_left_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    neighbours = Neighbours()
    whole, busy, own = neighbours._begin
    monkeypatch.setattr(neighbours, "_seconds", lambda: (whole + 8, busy + 5, own + 3))
    assert neighbours.share() == pytest.approx((5 - 3) / 8)


def test_what_a_child_computed_is_no_work_of_others() -> None:
    neighbours = Neighbours()
    work = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert neighbours._seconds()[2] - neighbours._begin[2] >= 0.4


def test_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PELLUCID_MODEL", "PELLUCID_CACHE_DIR", "PELLUCID_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    pellucid = runner(capsys)
    everything = find_experiments()
    assert pellucid("lab", "list").code == 0
    out = str(tmp_path / "out")
    if "schedulers" in everything:  # which needs no model
        run = ("lab", "run", "schedulers", "--quick", "--out", out, "--set", "requests=40")
        outcome = pellucid(*run, "--set", "policies=fifo")
        assert outcome.code == 0, outcome.err
        assert "fifo" in (tmp_path / "out" / "report.md").read_text()
        assert json.loads((tmp_path / "out" / "schedulers.json").read_text())["settings"] == {
            **msgspec.to_builtins(everything["schedulers"].quick),
            "requests": 40,
            "policies": ["fifo"],
        }
        refused = pellucid(*run, "--set", "policy=nowhere:Nothing")
        assert refused.code == 2
        assert "cannot load 'nowhere:Nothing'" in refused.err
    needy = next(name for name, one in everything.items() if one.needs_model)
    unset = pellucid("lab", "run", needy, "--set", "nothing=1", "--offline")
    assert unset.code == 2
    assert f"{needy} has the settings" in unset.err
    wrong = pellucid("lab", "run", "nothing")
    assert wrong.code == 2
    assert "no experiment is called 'nothing'" in wrong.err
    absent = pellucid("lab", "run", needy, "--offline", "--cache-dir", str(tmp_path / "none"))
    assert absent.code == 1
    assert "smollm2-135m" in absent.err
    empty = pellucid("lab", "report", str(tmp_path / "nowhere"))
    assert empty.code == 2
    assert "no results in" in empty.err


def test_an_experiment_that_fails_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(settings: Settings, lab: Lab) -> Findings:
        raise ConfigError("refuses: this model has windows")

    def fail(settings: Settings, lab: Lab) -> Findings:
        raise ZeroDivisionError("nothing was done")

    found = {
        name: dataclasses.replace(SAMPLE, name=name, run=run, needs_model=False)
        for name, run in (("a", refuse), ("b", fail), ("c", findings), ("d", refuse))
    }
    monkeypatch.setattr("pellucid.lab.experiment.find_experiments", lambda: found)
    monkeypatch.delenv("PELLUCID_DEBUG", raising=False)
    pellucid = runner(capsys)
    outcome = pellucid("lab", "run", "--all", "--quick", "--out", str(tmp_path))
    assert outcome.code == 1
    last = " ".join(outcome.err.splitlines()[-1:])
    assert "3 of 4 experiments failed: a (refuses: this model has windows); b (Zero" in last
    assert "; d (" in last
    assert [path.name for path in tmp_path.glob("*.json")] == ["c.json"]
    assert "## c" in (tmp_path / "report.md").read_text()
    none = pellucid("lab", "run", "a", "b", "--quick", "--out", str(tmp_path / "none"))
    assert none.code == 1
    assert "2 of 2 experiments failed" in none.err
    alone = pellucid("lab", "run", "a", "--quick", "--out", str(tmp_path / "none"))
    assert (alone.code, alone.err.count("windows")) == (2, 1)
