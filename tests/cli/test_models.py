from __future__ import annotations

import json
from pathlib import Path

from pellucid.load.aliases import ALIASES, DEFAULT_MODEL
from tests.cli.helpers import Pellucid
from tests.cli.test_app import completions


def test_models_as_json(pellucid: Pellucid, tmp_path: Path) -> None:
    outcome = pellucid("models", "--json", "--cache-dir", str(tmp_path))
    assert outcome.code == 0, outcome.err
    listed = {model["name"]: model for model in json.loads(outcome.out)}
    assert listed.keys() == ALIASES.keys()
    assert all(model["source"] for model in listed.values())
    assert {model["path"] for model in listed.values()} == {None}  # the cache is empty


def test_models_as_a_table(pellucid: Pellucid, tmp_path: Path) -> None:
    lines = pellucid("models", "--cache-dir", str(tmp_path)).out.splitlines()
    assert lines[0].split() == ["model", "here", "source", "about"]
    assert lines[1].split()[:2] == [DEFAULT_MODEL, "-"]


def test_pull_of_a_path_prints_it(pellucid: Pellucid, fake_model: Path) -> None:
    for offline in ((), ("--offline",)):
        outcome = pellucid("pull", str(fake_model), *offline)
        assert (outcome.code, outcome.out) == (0, f"{fake_model}\n")


def test_pull_of_an_unknown_name_suggests_one(pellucid: Pellucid) -> None:
    outcome = pellucid("pull", "smollm2-135")
    assert outcome.code == 1
    assert "did you mean smollm2-135m?" in outcome.err


def test_offline_says_so(pellucid: Pellucid, tmp_path: Path) -> None:
    outcome = pellucid("pull", DEFAULT_MODEL, "--offline", "--cache-dir", str(tmp_path))
    assert outcome.code == 1
    assert "offline" in outcome.err


def test_completion_knows_aliases() -> None:
    assert completions("pellucid serve smollm2-1") == ["smollm2-135m", "smollm2-1.7b"]
