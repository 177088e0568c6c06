"""What an experiment is, and how it is found and run."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from pellucid.bench.machine import describe_machine, describe_versions
from pellucid.bench.summary import command_line
from pellucid.errors import ConfigError
from pellucid.lab import experiments
from pellucid.lab.neighbours import Neighbours, caution
from pellucid.lab.result import Findings, Result

if TYPE_CHECKING:
    from pellucid.lab.subject import Subject

T = TypeVar("T")

DISTURBED = 0.1  # share of the machine's time in other processes from which a result says so


class Track(Protocol):
    """Goes through `items`, drawing how far it is."""

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]: ...


def untracked(items: Sequence[T], label: str) -> Iterable[T]:
    """A `Track` that draws nothing."""
    return items


@dataclass(frozen=True)
class Lab:
    """What an experiment is given to work with."""

    subject: Subject
    track: Track = untracked


@dataclass(frozen=True)
class Experiment:
    """A module of `lab/experiments` defines one as `EXPERIMENT`.

    `quick` and `full` are frozen structs of the same type, for runs under a minute on two cores and
    for figures to rely on. `run` takes one of them.
    """

    name: str
    question: str
    hypothesis: str
    method: str
    quick: msgspec.Struct
    full: msgspec.Struct
    run: Callable[[Any, Lab], Findings]
    needs_model: bool = True

    def settings(self, *, quick: bool) -> msgspec.Struct:
        return self.quick if quick else self.full


def find_experiments() -> dict[str, Experiment]:
    """All experiments by name. Only the folder's listing says which there are."""
    modules = sorted(module.name for module in iter_modules(experiments.__path__))
    found = (import_module(f"{experiments.__name__}.{name}").EXPERIMENT for name in modules)
    return {experiment.name: experiment for experiment in found}


def choose(names: Sequence[str], *, every: bool) -> list[Experiment]:
    """The experiments that are asked for. Raises ConfigError if there is no such."""
    known = find_experiments()
    if names and every:
        raise ConfigError(f"--all runs every experiment: leave out {' '.join(names)}, or --all")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f": there are {', '.join(known)}"
            raise ConfigError(f"no experiment is called {name!r}{hint}")
    if not names and not every:
        raise ConfigError("name an experiment, or give --all; `pellucid lab list` shows them")
    return list(known.values()) if every else [known[name] for name in dict.fromkeys(names)]


def changed(experiment: Experiment, settings: msgspec.Struct, changes: Sequence[str]) -> Any:
    """`settings` with each "name=value" of `changes`; a list's values are separated by commas.

    Raises:
        ConfigError: there is no such setting, or the value is not one of its type.
    """
    known = msgspec.to_builtins(settings)
    values = dict(known)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in known:
            there = ", ".join(known)
            raise ConfigError(f"--set {change}: {experiment.name} has the settings {there}")
        values[name] = value.split(",") if isinstance(known[name], list | tuple) else value
    try:
        made = msgspec.convert(values, type(settings), strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--set: {experiment.name}: {error}") from None
    for name, value in msgspec.to_builtins(made).items():
        for number in value if isinstance(value, list | tuple) else [value]:
            # What is 0 by default, a seed for one, may be 0; of the rest there is at least some.
            least = 0 if known[name] == 0 else 1e-9
            if isinstance(number, int | float) and number < least and number is not False:
                raise ConfigError(f"--set {name}={number}: must be more than 0")
    return made


def share_out(
    chosen: Sequence[Experiment], changes: Sequence[str], *, every: bool, quick: bool
) -> dict[str, list[str]]:
    """Which of `changes` each experiment gets: all of them, or with `every` those it knows.

    Raises:
        ConfigError: as `changed` does; with `every`, if no experiment has such a setting.
    """
    given: dict[str, list[str]] = {}
    for experiment in chosen:
        settings = experiment.settings(quick=quick)
        known = settings.__struct_fields__
        given[experiment.name] = [
            change for change in changes if not every or change.partition("=")[0] in known
        ]
        changed(experiment, settings, given[experiment.name])
    for change in changes:
        if all(change not in some for some in given.values()):
            raise ConfigError(f"--set {change}: no experiment has such a setting")
    return given


def _same_start() -> AbstractContextManager[None]:
    from pellucid.lab.torch_threads import same_start  # imports torch

    return same_start()


def run_experiment(
    experiment: Experiment, lab: Lab, *, quick: bool, changes: Sequence[str] = ()
) -> Result:
    """Run it here and now, with `changes` to its settings as `changed` takes them.

    Raises what loading a model raises, and ConfigError.
    """
    settings = changed(experiment, experiment.settings(quick=quick), changes)
    begin, neighbours = time.perf_counter(), Neighbours()
    with _same_start() if experiment.needs_model else nullcontext():
        findings = experiment.run(settings, lab)
    if experiment.needs_model and (share := neighbours.share()) > DISTURBED:
        findings.conclusion = [caution(share), *findings.conclusion]
    return Result(
        name=experiment.name,
        question=experiment.question,
        hypothesis=experiment.hypothesis,
        method=experiment.method,
        size="quick" if quick else "full",
        settings=msgspec.to_builtins(settings),
        model=lab.subject.name if experiment.needs_model else "none",
        command=command_line(),
        machine=describe_machine(),
        versions=describe_versions("transformers"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - begin,
        findings=findings,
    )
