"""docs/learn is held true: excerpts, links, commands, experiments and tests that it names."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.lab.experiment import find_experiments
from tests.cli.helpers import runner

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "learn").glob("*.md"))
# A line such as [`engine/core.py`](../../src/pellucid/engine/core.py), `EngineCore.step`:
SOURCE = r"^\[`(?P<shown>[^`]+)`\]\((?P<path>[^)]+)\), `(?P<name>[^`]+)`:\n"
EXCERPT = re.compile(SOURCE + r"```\w+\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
TEST = re.compile(r"\btests/[\w/]+\.py(?:::(\w+))?")
COMMAND = re.compile(r"\s*(\w+=\S+ )*pellucid ")
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


LAB = ROOT / "docs" / "lab.md"
MODULES = ROOT / "src" / "pellucid" / "lab" / "experiments"


def described() -> set[str]:
    """Experiments in the table of docs/lab.md, also those whose module somebody has removed."""
    return set(re.findall(r"^\| `([\w-]+)` \|", text_of(LAB), re.MULTILINE))


def was_removed(path: Path) -> bool:
    """Whether it is the module of an experiment that is described but not there."""
    name = path.stem.replace("_", "-")
    return path.parent == MODULES and name in described() and not path.exists()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_part(source: str, name: str) -> str:
    """The lines of a class, a function or a method, such as `Scheduler.schedule`."""
    node: ast.AST = ast.parse(source)
    for step in name.split("."):
        inner = (child for child in ast.iter_child_nodes(node) if hasattr(child, "name"))
        node = next(child for child in inner if child.name == step)
    return "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])


def cpp_part(source: str, name: str) -> str:
    """From the line on that begins the definition of a function, to its closing brace."""
    begin = re.search(rf"^[^\s/].*\b{re.escape(name)}\(", source, re.MULTILINE)
    assert begin is not None, name
    return source[begin.start() : source.index("\n}", begin.start())]


def is_part(code: str, source: str) -> bool:
    """Whether the lines of `code` follow each other in `source`, all moved right alike."""
    moved = (textwrap.indent(code, " " * width) for width in range(0, 24, 4))
    return any(f"\n{lines}" in f"\n{source}\n" for lines in moved)


@page
def test_excerpts_are_in_the_functions_they_name(page: Path) -> None:
    excerpts = list(EXCERPT.finditer(text_of(page)))
    for found in excerpts:
        file = (page.parent / found["path"]).resolve()
        assert file.as_posix().endswith(found["shown"])
        if was_removed(file):
            continue
        part = python_part if file.suffix == ".py" else cpp_part
        source = part(file.read_text(encoding="utf-8"), found["name"])
        assert is_part(found["code"], source), f"{found['name']} no longer has:\n{found['code']}"
    # All code says where it is from, but what a reader is to write, which is indented.
    quoted = [found for found in FENCE.finditer(text_of(page)) if found[2] and not found[1]]
    assert len(quoted) == len(excerpts)
    assert excerpts or page.stem == "README"


@page
def test_links_lead_somewhere(page: Path) -> None:
    targets = [found[1] for found in LINK.finditer(text_of(page)) if "://" not in found[1]]
    assert targets
    files = [(page.parent / target).resolve() for target in targets]
    assert [file for file in files if not file.exists() and not was_removed(file)] == []


@page
def test_the_tests_it_names_exist(page: Path) -> None:
    for found in TEST.finditer(text_of(page)):
        file = ROOT / found[0].partition("::")[0]
        assert file.is_file(), found[0]
        assert not found[1] or f"def {found[1]}(" in file.read_text(encoding="utf-8"), found[0]


def commands(page: Path) -> Iterator[list[str]]:
    """Lines of plain fences, and spans of code that begin with `pellucid`; without variables."""
    text = text_of(page)
    fences = (found[3] for found in FENCE.finditer(text) if not found[2])
    spans = re.findall(r"`((?:\w+=\S+ )*pellucid [^`]+)`", text)
    for line in [*"".join(fences).splitlines(), *spans]:
        if COMMAND.match(line):
            words = shlex.split(line, comments=True)
            yield words[words.index("pellucid") + 1 :]


def experiments(words: list[str]) -> set[str]:
    """Those that a command runs."""
    return {word for word in words[2:] if word[0] != "-"} if words[:2] == ["lab", "run"] else set()


@page
def test_commands_and_experiments_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pellucid = runner(capsys)
    for words in commands(page):
        outcome = pellucid(*words, "--help")  # refuses options that there are not
        assert outcome.code == 0, outcome.err
        assert experiments(words) <= find_experiments().keys() | described()


def test_the_course_has_commands() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 8


def test_every_page_has_an_experiment_and_is_in_the_index() -> None:
    index = text_of(PAGES[-1])
    for page in PAGES[:-1]:
        assert f"]({page.name})" in index
        assert any(experiments(words) for words in commands(page)), page.name


def test_the_policy_of_page_6_can_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader is to write there, written and run."""
    if "schedulers" not in find_experiments():
        pytest.skip("it is tried with the experiment, which was removed")
    blocks = [found[3] for found in FENCE.finditer(text_of(PAGES[5])) if found[1] and found[2]]
    policy, trial = map(textwrap.dedent, blocks)
    (tmp_path / "newest.py").write_text(policy, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(trial, "page 6", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("fifo", "newest:Newest")
    ]


def test_what_is_described_of_the_lab_is_there_or_was_removed() -> None:
    """A name that is misspelt is no removed one."""
    assert find_experiments().keys() <= described()
    assert was_removed(MODULES / "no_such.py") is False
    assert not any(was_removed(path) for path in MODULES.glob("*.py"))
