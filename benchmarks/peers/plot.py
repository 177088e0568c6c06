"""The picture of the report: each engine's speed as a share of pellucid's in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.report import Report, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET = Path(__file__).parents[2] / "docs" / "pictures" / "peers.png"
OURS, THEIRS = "#e8973a", "#3b82c4"
COLUMNS = 4
TITLES = {
    "prefill_512": "prefill, 512 tokens",
    "decode_1": "decode, 1 sequence",
    "decode_8": "decode, 8 sequences",
    "decode_32": "decode, 32 sequences",
    "larger_prefill_512": "Qwen2.5-0.5B: prefill",
    "larger_decode_1": "Qwen2.5-0.5B: decode, 1",
    "larger_decode_16": "Qwen2.5-0.5B: decode, 16",
}


def draw(report: Report, target: Path = TARGET) -> None:
    """Write the picture, or say why not."""
    try:
        import matplotlib as mpl
        import matplotlib.pyplot as plt
    except ImportError:
        print("the picture needs matplotlib: pip install 'pellucid[plot]'")
        return
    panels = _panels(report)
    if not panels:
        return
    mpl.use("Agg")
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(16, 2.9 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (title, entries) in zip(axes.flat, panels.items(), strict=False):
        axis.set_visible(True)
        _panel(axis, title, {label(report, name): entry for name, entry in entries.items()})
    figure.suptitle("Speed relative to pellucid in the same rounds; tokens/s beside the bars")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _panels(report: Report) -> dict[str, dict[str, Any]]:
    """Title -> engine -> the entry of the rate that the panel is about."""
    panels: dict[str, dict[str, Any]] = {}
    for name in TITLES:
        entries = report["in_process"].get(name, {})
        measure = "prefill" if "prefill" in name else "decode"
        panels[TITLES[name]] = {
            engine: entry[measure] for engine, entry in entries.items() if measure in entry
        }
    for clients in sorted(report["over_http"], key=int):
        panels[f"HTTP, {clients} at once"] = report["over_http"][clients]
    return {title: entries for title, entries in panels.items() if len(entries) > 1}


def _panel(axis: Axes, title: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    shares, errors, colours = [], [], []
    for entry in entries.values():
        ratio = entry.get("pellucid_times_as_fast", {"median": 1.0, "min": 1.0, "max": 1.0})
        share = 1 / ratio["median"]
        shares.append(share)
        errors.append((share - 1 / ratio["max"], 1 / ratio["min"] - share))
        colours.append(THEIRS if "pellucid_times_as_fast" in entry else OURS)
    places = list(range(len(entries)))[::-1]
    axis.barh(places, shares, xerr=list(zip(*errors, strict=True)), color=colours, ecolor="#555")
    axis.set_yticks(places, list(entries))
    ends = [share + above for share, (_, above) in zip(shares, errors, strict=True)]
    for place, entry, end in zip(places, entries.values(), ends, strict=True):
        axis.annotate(
            f"{entry['tokens_per_s']['median']:,.0f}",
            (end, place),
            textcoords="offset points",
            xytext=(8, 0),
            va="center",
            fontsize=8,
        )
    axis.set_title(title, fontsize=10)
    axis.set_xlim(0, 1.2 * max(ends))
    axis.spines[["top", "right"]].set_visible(False)
