"""Running the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pellucid.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Pellucid = Callable[..., Outcome]


def runner(capsys: pytest.CaptureFixture[str]) -> Pellucid:
    """A function that runs `pellucid ARGUMENTS...`."""

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run
