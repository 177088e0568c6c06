from __future__ import annotations

import sys

import pytest

from pellucid.bench.summary import command_line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--model", "/srv/models/a.gguf", "--quick"], "--model a.gguf --quick"),
        (["--out=/home/somebody/out/", "-n", "4"], "--out=out -n 4"),
        (["--set", "policy=/a/b=c"], "--set policy=b=c"),
        (["/a=b/c", "/"], "c ''"),
        (["--out", "results/one", "--set", "x=a/b"], "--out results/one --set x=a/b"),
        (["--url", "http://localhost:8000/v1"], "--url http://localhost:8000/v1"),
    ],
)
def test_a_command_is_told_without_the_folders_of_the_machine(
    given: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pellucid", *given])
    assert command_line() == f"pellucid {told}"
