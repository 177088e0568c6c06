"""Figures as PNG files by matplotlib and as interactive HTML by plotly: the extra `lab`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pellucid.errors import ConfigError
from pellucid.lab.result import Figure, Series

BUNDLE = "plotly.min.js"  # beside the pages that use it
ROOM = 90  # characters of tick labels that fit beside each other
FEW = 20  # points of a curve below which each is marked
MANY = 5  # curves, from which on their legend stands beside them: within it would hide some
LANES = 30  # of a time line, up to which each is named
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#222222")


def check_extra() -> None:
    """Raise ConfigError naming the extra if what draws is not installed."""
    try:
        import matplotlib  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the lab needs {error.name}: pip install 'pellucid[lab]'") from None


def write_png(figure: Figure, path: Path) -> None:
    """Draw without a display."""
    picture(figure).savefig(path)


def picture(figure: Figure) -> Any:
    """A `matplotlib.figure.Figure`, which belongs to no display; a notebook shows it as it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    lanes = _lanes(figure)
    height = max(4.5, 0.16 * len(lanes))
    canvas = Canvas(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
    axes.grid(visible=True, alpha=0.3)
    if figure.spans:
        _spans_png(axes, figure, lanes)
    bars = [series for series in figure.series if series.style == "bars"]
    areas = [series for series in figure.series if series.style == "area"]
    if areas:
        shades = [COLOURS[figure.series.index(one) % len(COLOURS)] for one in areas]
        heights, names = [one.y for one in areas], [one.name for one in areas]
        axes.stackplot(areas[0].x, heights, labels=names, colors=shades, alpha=0.8)
    for index, series in enumerate(figure.series):
        if series.style != "area":
            _series_png(axes, series, COLOURS[index % len(COLOURS)], bars)
    _scales_png(axes, figure, bars)
    entries = len(figure.series) + len(_kinds(figure))
    if entries > 1:
        # Areas leave no room for a legend; beside them it has their order.
        aside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(
            fontsize="small", reverse=bool(areas), **(aside if areas or entries >= MANY else {})
        )
    return canvas


def _scales_png(axes: Any, figure: Figure, bars: list[Series]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    if figure.ticks:
        axes.set_xticks(range(len(figure.ticks)), figure.ticks)
        if len(figure.ticks) * max(map(len, figure.ticks)) > ROOM:
            axes.tick_params("x", rotation=25)
    if figure.log_x:
        axes.set_xscale("log")
    places = sorted({x for series in figure.series for x in series.x})
    whole = all(x == round(x) for x in places)
    if places and not figure.ticks and len(places) < FEW and (figure.log_x or whole):
        axes.set_xticks(places, [f"{x:g}" for x in places])  # their own numbers
        axes.tick_params("x", which="minor", bottom=False, labelbottom=False)
    if figure.log_y:
        axes.set_yscale("log")
        if bars:  # from a power of ten, or the least one would have no height
            least = min(y for series in bars for y in series.y if y > 0)
            axes.set_ylim(bottom=10 ** math.floor(math.log10(least)))
        plain = FuncFormatter(lambda y, _: f"{y:,.10g}")
        axes.yaxis.set_major_formatter(plain)
        low, high = axes.get_ylim()
        if high < 1000 * low:  # powers of ten alone would be a few numbers
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter(plain)


def _series_png(axes: Any, series: Series, colour: str, bars: list[Series]) -> None:
    if series.style == "bars":
        width = 0.8 / len(bars)
        shift = (bars.index(series) - (len(bars) - 1) / 2) * width
        error = None
        if series.low:
            below = [y - low for y, low in zip(series.y, series.low, strict=True)]
            error = [below, [high - y for y, high in zip(series.y, series.high, strict=True)]]
        places = [x + shift for x in series.x]
        axes.bar(places, series.y, width, label=series.name, color=colour, yerr=error, capsize=3)
        return
    form = "--" if series.style == "dashed" else "-"
    upright = len(set(series.x)) == 1  # marks a place, and has no points
    mark = "o" if len(series.x) < FEW and not upright else ""
    axes.plot(series.x, series.y, form, marker=mark, ms=4, label=series.name, color=colour)
    if series.low:
        axes.fill_between(series.x, series.low, series.high, alpha=0.2, color=colour, lw=0)


def _lanes(figure: Figure) -> dict[str, int]:
    """Rows of a time line from the top, in order of appearance."""
    return {lane: -i for i, lane in enumerate(dict.fromkeys(span.lane for span in figure.spans))}


def _kinds(figure: Figure) -> dict[str, str]:
    kinds = dict.fromkeys(span.kind for span in figure.spans)
    return {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}


def _spans_png(axes: Any, figure: Figure, lanes: dict[str, int]) -> None:
    for kind, colour in _kinds(figure).items():
        spans = [span for span in figure.spans if span.kind == kind]
        axes.barh(
            [lanes[span.lane] for span in spans],
            [span.end - span.begin for span in spans],
            left=[span.begin for span in spans],
            color=colour,
            label=kind,
        )
    named = list(lanes)[:: 1 if len(lanes) <= LANES else 4]
    axes.set_yticks([lanes[lane] for lane in named], named, fontsize="small")
    axes.set_ylim(-len(lanes), 1)
    axes.set_xlim(left=0)


def html_part(figure: Figure) -> str:
    """A `<div>` for a page that loads BUNDLE."""
    import plotly.graph_objects as go

    plot = go.Figure()
    for index, series in enumerate(figure.series):
        _series_html(go, plot, figure, series, COLOURS[index % len(COLOURS)])
    lanes = _lanes(figure)
    for kind, colour in _kinds(figure).items():
        spans = [span for span in figure.spans if span.kind == kind]
        plot.add_bar(
            y=[span.lane for span in spans],
            x=[span.end - span.begin for span in spans],
            base=[span.begin for span in spans],
            orientation="h",
            name=kind,
            marker_color=colour,
        )
    plot.update_layout(
        title=figure.title,
        xaxis={"title": {"text": figure.x_label}, "type": "log" if figure.log_x else None},
        yaxis={"title": {"text": figure.y_label}, "type": "log" if figure.log_y else None},
        barmode="overlay" if figure.spans else "group",
        height=max(480, 14 * len(lanes)),
    )
    if figure.spans:
        plot.update_yaxes(type="category", autorange="reversed")
    part: str = plot.to_html(full_html=False, include_plotlyjs=False)
    return part


def _series_html(go: Any, plot: Any, figure: Figure, series: Series, colour: str) -> None:
    x = [figure.ticks[int(place)] for place in series.x] if figure.ticks else series.x
    error = None
    if series.low:
        error = {
            "type": "data",
            "symmetric": False,
            "array": [high - y for y, high in zip(series.y, series.high, strict=True)],
            "arrayminus": [y - low for y, low in zip(series.y, series.low, strict=True)],
            "thickness": 1,
        }
    if series.style == "bars":
        plot.add_bar(x=x, y=series.y, name=series.name, marker_color=colour, error_y=error)
        return
    if series.style == "area":
        line = {"color": colour, "width": 0.5}
        plot.add_scatter(
            x=x, y=series.y, name=series.name, mode="lines", line=line, stackgroup="areas"
        )
        return
    few = len(series.x) < FEW
    plot.add_trace(
        go.Scatter(
            x=x,
            y=series.y,
            name=series.name,
            mode="lines+markers" if few else "lines",
            line={"color": colour, "dash": "dash" if series.style == "dashed" else "solid"},
            error_y=error if few else None,
        )
    )


def write_bundle(folder: Path) -> None:
    """plotly's script, once per folder: pages work without a network."""
    from plotly.offline import get_plotlyjs

    path = folder / BUNDLE
    if not path.exists():
        path.write_text(get_plotlyjs(), encoding="utf-8")
