"""Pictures of a report, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(report: dict[str, Any], folder: Path) -> list[str]:
    """Write what can be drawn; returns the names of the files."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    written = []
    by_tokens = report.get("by_tokens", {}).get("found", {})
    for op in ("rms_norm", "add_rms_norm", "silu_mul"):
        if by_tokens.get(op):
            figure = Figure(figsize=(7, 4), layout="constrained")
            _by_tokens(figure.subplots(), op, by_tokens[op])
            figure.savefig(folder / f"{op}.png", dpi=120)
            written.append(f"{op}.png")
    measured = report.get("kernels", {}).get("found", {}).get("kernels", [])
    shares = [m for m in measured if "share" in m]
    if shares:
        figure = Figure(figsize=(9, 0.3 * len(shares) + 1), layout="constrained")
        _shares(figure.subplots(), shares)
        figure.savefig(folder / "shares.png", dpi=120)
        written.append("shares.png")
    return written


def _by_tokens(axes: Any, op: str, measured: list[dict[str, Any]]) -> None:
    for kernels in dict.fromkeys(m["kernels"] for m in measured):
        line = [(m["rows"], m["gb_per_s"]) for m in measured if m["kernels"] == kernels]
        axes.plot(*zip(*line, strict=True), marker="o", label=kernels)
    copies = {m["rows"]: m["copy_gb_per_s"] for m in measured if m.get("copy_gb_per_s")}
    axes.plot(list(copies), list(copies.values()), "--", label="copy of the same bytes")
    axes.set(xscale="log", xlabel="tokens", ylabel="GB/s", title=f"{op}, {measured[0]['shape']}")
    axes.legend()


def _shares(axes: Any, measured: list[dict[str, Any]]) -> None:
    names = [f"{m['op']} {m['weights']} {m['rows']} ({m['kernels']})" for m in measured]
    axes.barh(names, [m["share"] for m in measured])
    axes.invert_yaxis()
    axes.set(xlabel="share of the copy's or the product's speed", xlim=(0, 1))
