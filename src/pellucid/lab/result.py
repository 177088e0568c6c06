"""What an experiment finds, as plain data: it is written as JSON, drawn, and joined to reports."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FORMAT = 1  # of the JSON; a reader refuses others


class Series(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One curve: `y` over `x`, with the range of its repeats where there were several.

    The areas of a figure share their x and are stacked, the first at the bottom.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = []
    high: list[float] = []
    style: Literal["line", "dashed", "bars", "area"] = "line"


class Span(msgspec.Struct):
    """A bar of a time line, in seconds. `lane` is its row, `kind` its colour."""

    lane: str
    begin: float
    end: float
    kind: str


class Figure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A picture. With `ticks`, x counts through these names; with `spans` it is a time line."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: list[Series] = []
    spans: list[Span] = []
    ticks: list[str] = []
    log_x: bool = False
    log_y: bool = False


class Table(msgspec.Struct):
    title: str
    columns: list[str]
    rows: list[list[str | float | None]]


class Law(msgspec.Struct, kw_only=True):
    """y = factor * x ** exponent, by least squares of log y over log x; see `fit.power_law`."""

    name: str
    x: str
    y: str
    exponent: float
    factor: float
    r2: float  # share of the variance of log y that the law explains
    points: int


class Findings(msgspec.Struct, kw_only=True):
    """What one run of an experiment brings. `raw` holds every number that was measured."""

    tables: list[Table]
    figures: list[Figure]
    raw: dict[str, Any]
    conclusion: list[str]  # sentences, computed from the data
    laws: list[Law] = []
    notes: list[str] = []  # what could not be measured here, and why


class Result(msgspec.Struct, kw_only=True):
    """Findings with all that is needed to measure them again."""

    name: str
    question: str
    hypothesis: str
    method: str
    size: Literal["quick", "full"]
    settings: dict[str, Any]
    model: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str | None]
    date: str  # UTC, ISO 8601
    seconds: float
    findings: Findings
    format: int = FORMAT
