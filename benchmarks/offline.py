"""Throughput of random weights where there is torch and little else.

What `pellucid bench throughput --random-weights` measures, without the command line's packages, the
compiled module and a tokenizer:

    PYTHONPATH=src python -m benchmarks.offline --shape llama3-8b --json out.json \\
        device=cuda kernels=triton cuda_graphs=true input_len=512 output_len=128 batch_size=64

Settings are those of `config/` and of the workload (`bench/settings.py`), by name.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import msgspec
import torch

from pellucid.bench.settings import Workload
from pellucid.bench.throughput import measure, undrafted
from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.runner.factory import create_random_runner


def main() -> None:
    parser = argparse.ArgumentParser(description="Offline throughput of random weights.")
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    given = parser.parse_args()
    settings = dict(entry.split("=", 1) for entry in given.settings)
    of_load = {field.name for field in msgspec.structs.fields(Workload)}
    load = msgspec.convert(
        {name: settings.pop(name) for name in of_load & settings.keys()}, Workload, strict=False
    )
    config = undrafted(EngineConfig.of(**settings))
    report = run(config, load, given.shape)
    text = json.dumps(report, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


def run(config: EngineConfig, load: Workload, shape: str) -> dict[str, Any]:
    """The report of one load, ready for JSON."""
    runner = create_random_runner(config, shape)
    try:
        core = create_core(runner, config.cache, config.scheduler)
        result = measure(core, load)
    finally:
        runner.close()
    device = core.info.device
    about = {
        "shape": shape,
        "workload": load,
        "engine": msgspec.structs.asdict(core.info),
        "settings": config,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
    }
    report: dict[str, Any] = {**msgspec.to_builtins(result), **msgspec.to_builtins(about)}
    return report


if __name__ == "__main__":
    main()
