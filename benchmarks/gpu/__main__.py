"""Runs the stages in turn, each as a process with a time limit, and collects what they found."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Name -> (module, function, seconds); in order of use, and of importance. All of them are more than
# one command may take where GPUs are lent by the minute: docs/gpu.md has them in two.
STAGES: dict[str, tuple[str, str, int]] = {
    "machine": ("speeds", "machine", 90),
    "checks": ("checks", "kernels", 100),
    "sampling": ("speeds", "sampling", 60),
    "invariance": ("invariance", "invariance", 110),
    "greedy": ("greedy", "greedy", 60),
    "decode": ("wholes", "decode", 110),
    "nano_vllm": ("wholes", "nano_vllm", 130),
    "by_tokens": ("speeds", "by_tokens", 40),
    "kernels": ("speeds", "kernels", 90),
    "thresholds": ("speeds", "thresholds", 60),
    "vllm": ("others", "vllm", 115),
    "transformers": ("others", "transformers", 110),
}
BUDGET = 570  # seconds of one command's stages together
GRACE = 5  # seconds after a stage's own deadline


def main() -> None:
    options = _options()
    if options.draw:
        _draw(options.draw)
        return
    if options.stage:
        _run_stage(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",") if options.only else list(STAGES)
    report: dict[str, Any] = {"command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])}
    end = time.monotonic() + options.budget
    for name in names:
        limit = min(STAGES[name][2], end - time.monotonic() - GRACE)
        if limit < GRACE:
            report[name] = {"state": "skipped: no time left"}
        else:
            report[name] = _in_process(name, limit, report, options)
        print(f"-- {name}: {report[name]['state']}", flush=True)
        _write(report, options.out)
    from benchmarks.gpu.summary import lines

    print("\n".join(lines(report)))
    failed = [name for name in names if report[name]["state"] != "done"]
    print(f"report: {options.out / 'report.json'}" + (f"; not done: {failed}" if failed else ""))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-report"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try out the script")
    parser.add_argument("--model", type=Path, help="a .gguf file, for `greedy`")
    parser.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="only draw what FOLDER/report.json holds"
    )
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--limits", default="null", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(filter(None, (options.only or "").split(","))) - STAGES.keys()
    if options.model and not options.model.is_file():
        parser.error(f"--model: no such file: {options.model}")
    if unknown:
        parser.error(f"--only: no such stage: {', '.join(sorted(unknown))}")
    return options


def _in_process(
    name: str, limit: float, report: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """A stage's state, seconds, and all that it found before it ended, however it did."""
    every = (part["found"].get("limits") for part in report.values() if isinstance(part, dict))
    limits = next(filter(None, every), None)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [
            *(sys.executable, "-m", "benchmarks.gpu", "--stage", name, "--out", str(path)),
            *("--device", options.device, "--seconds", str(limit), "--limits", json.dumps(limits)),
            *(["--tiny"] if options.tiny else []),
            *(["--model", str(options.model)] if options.model else []),
        ]
        try:
            done = subprocess.run(
                command, timeout=limit + GRACE, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            lines = done.stderr.strip().splitlines()
            state = "done" if done.returncode == 0 else f"failed: {' | '.join(lines[-4:])[-1500:]}"
        except subprocess.TimeoutExpired:
            state = f"stopped after {limit:.0f} s"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"state": state, "seconds": time.monotonic() - begin, "found": found}


def _run_stage(options: argparse.Namespace) -> None:
    from importlib import import_module

    import torch

    from benchmarks.gpu.context import Context
    from pellucid.kernels.gpu_measure import GpuLimits

    limits = json.loads(options.limits)
    context = Context(
        device=torch.device(options.device),
        tiny=options.tiny,
        deadline=time.monotonic() + options.seconds,
        path=options.out,
        model=options.model,
        limits=None if limits is None else GpuLimits(**limits),
    )
    module, function, _ = STAGES[options.stage]
    getattr(import_module(f"benchmarks.gpu.{module}"), function)(context)


def _draw(folder: Path) -> None:
    """Pictures of a report that was written where there was no matplotlib."""
    from benchmarks.gpu.pictures import draw

    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"--draw: {folder / 'report.json'} cannot be read: {error}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit("--draw: matplotlib is not installed: pip install matplotlib")
    written = draw(report, folder)
    print("\n".join(str(folder / name) for name in written) or "nothing to draw")


def _write(report: dict[str, Any], folder: Path) -> None:
    """The report so far, and its pictures."""
    from benchmarks.gpu.pictures import draw

    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    try:
        draw(report, folder)
    except Exception as error:  # a picture is worth less than the rest of the report
        print(f"pictures: {error}", flush=True)


if __name__ == "__main__":
    main()
