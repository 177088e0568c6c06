"""A report in some lines: what a terminal should end with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def lines(report: dict[str, Any]) -> Iterator[str]:
    """What passed, what did not, and the figures that matter."""
    found = {name: part["found"] for name, part in report.items() if isinstance(part, dict)}
    if limits := next(filter(None, (part.get("limits") for part in found.values())), None):
        copy, product = limits["memory"] / 1e9, limits["compute"] / 1e12
        yield f"limits: copy {copy:,.0f} GB/s, product {product:,.1f} TFLOP/s"
    yield from _checks(found.get("checks", {}))
    for name, result in found.get("sampling", {}).items():
        if isinstance(result, dict):
            yield f"sampling {name}: {_figures(result)}"
    for stage in ("invariance", "greedy", "decode", "nano_vllm", "vllm", "transformers"):
        for name, result in found.get(stage, {}).items():
            if isinstance(result, dict):
                yield f"{stage} {name}: {_figures(result)}"
    if absent := found.get("vllm", {}).get("absent"):
        yield f"vllm: not here ({absent})"
    yield from _shares(found.get("kernels", {}).get("kernels", []))
    if thresholds := found.get("thresholds", {}).get("thresholds"):
        yield f"thresholds: {thresholds}"


def _checks(checks: dict[str, Any]) -> Iterator[str]:
    judged = {name: result for name, result in checks.items() if isinstance(result, dict)}
    bad = [
        name for name, result in judged.items() if "failed" in result or result.get("ok") is False
    ]
    if judged:
        yield f"checks: {len(judged) - len(bad)} of {len(judged)} passed"
    for name in bad:
        yield f"  {name}: {judged[name]}"
    for name, result in checks.items():
        if name.startswith(("bits", "rows alone")) and name not in bad:
            yield f"  {name}: {result}"


_TOLD = (
    *("decode_tokens_per_s", "output_tokens_per_s", "weight_gb_per_s", "share_of_copy"),
    *("tokens", "disagree", "disagree beyond margin", "close calls", "error"),
    *("finished", "differ", "triton_seconds", "torch_seconds"),
    *("alone = together", "chunked = together", "preempted = together"),
    *("replayed = launched", "preemptions", "failed"),
)


def _figures(result: dict[str, Any]) -> str:
    told = {name: result[name] for name in _TOLD if result.get(name) is not None}
    return ", ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in told.items()
    )


def _shares(measured: list[dict[str, Any]]) -> Iterator[str]:
    """Of each op and number of rows, the share of its limit by each of the kernels."""
    shares: dict[tuple[Any, ...], list[str]] = {}
    for m in measured:
        if "share" in m:
            key = m["op"], m["weights"], m["rows"], m["limit"]
            shares.setdefault(key, []).append(f"{m['kernels']} {m['share']:.0%}")
    for (op, weights, rows, limit), by in shares.items():
        yield f"{op} {weights} {rows} rows, of {limit}: {', '.join(by)}"
