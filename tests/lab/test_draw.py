"""Figures as they are drawn."""

from __future__ import annotations

from typing import Any

from pellucid.lab import draw
from pellucid.lab.result import Figure, Series, Span


def test_axes_have_the_numbers_of_the_data() -> None:
    def axes(**about: Any) -> Any:
        figure = Figure(name="a", title="a", x_label="x", y_label="y", **about)
        return draw.picture(figure).axes[0]

    few = axes(series=[Series(name="a", x=[1.0, 2.0, 8.0], y=[300.0, 900.0, 4000.0])], log_y=True)
    assert [tick.get_text() for tick in few.get_xticklabels()] == ["1", "2", "8"]
    few.figure.canvas.draw()
    told = {tick.get_text() for tick in few.get_yticklabels(which="both")}
    assert {"500", "1,000", "2,000"} <= told
    lines = axes(spans=[Span(f"{n}", 1.0, 2.0, "kind") for n in range(100)])
    assert len(lines.get_yticklabels()) == 25
    assert len(lines.get_xticklabels()) > 2
    assert lines.get_xlim()[0] == 0
