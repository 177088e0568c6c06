"""What is left to Triton, and how: by size, as it was measured on this GPU.

A size is that of a row (its columns), which follows from the model. It is not the number of rows
in a step, although that is what decides which is faster: Triton and torch add in different orders,
so a token would depend on how many others are computed with it. Heights of tiles may follow the
number of rows, if both give the same bits: whoever sets them has compared (`calibrate.py` does).

Settings are taken from the first of: `PELLUCID_TRITON_THRESHOLDS`, as in "rms_norm=256,dense=1";
the file that `pellucid bench kernels --write-thresholds` wrote for this GPU and these versions;
the defaults, which take Triton for everything but products with float weights.
"""

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from pellucid.kernels.gpu import default_device, platform_key

VARIABLE = "PELLUCID_TRITON_THRESHOLDS"
NEVER = 1 << 30
FILE_NAME = "triton_thresholds.json"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The fewest columns for Triton, by op; and heights of tiles."""

    rms_norm: int = 0  # columns of a normed row: the hidden size, or a head's
    gated: int = 0  # columns of the result of SwiGLU or GeGLU
    rope: int = 0  # columns of a head
    attention: int = 0  # columns of a head
    dense: int = NEVER  # columns of a float weight; the head's are `head`
    head: int = 0
    product_rows: int = 16  # of a tile of a quantised product with more rows: 16, 32 or 64
    dense_rows: int = 64  # likewise, of one with float weights: 64 or 128

    @classmethod
    def current(cls) -> "Thresholds":
        """What holds here.

        Raises:
            ValueError: an entry of the variable that is not NAME=NUMBER, or of no such name.
        """
        return cls.measured().overridden(os.environ.get(VARIABLE, ""))

    @classmethod
    def measured(cls) -> "Thresholds":
        """What the file says of this GPU and these versions, or the defaults."""
        entry = _entries().get(platform_key(default_device()), {})
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in entry.items() if name in known})

    def overridden(self, text: str) -> "Thresholds":
        """Numbers replaced by what `text` says; see `current`."""
        found = {}
        for entry in filter(None, text.split(",")):
            name, _, number = entry.partition("=")
            if name.strip() not in asdict(self) or not number.strip().isdecimal():
                names = ", ".join(sorted(asdict(self)))
                raise ValueError(f"{VARIABLE}: {entry!r} is not NAME=NUMBER; names are {names}")
            found[name.strip()] = int(number)
        changed = replace(self, **found)
        if changed.product_rows not in (16, 32, 64) or changed.dense_rows not in (64, 128):
            raise ValueError(f"{VARIABLE}: product_rows is 16, 32 or 64, dense_rows 64 or 128")
        return changed

    def write(self) -> Path:
        """Keep them for this GPU and these versions; returns the file."""
        path = file_path()
        entries = _entries() | {platform_key(default_device()): asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        said = (f"{name}={value}" for name, value in asdict(self).items() if value != NEVER)
        return ", ".join(said)


def file_path() -> Path:
    """Where measured thresholds are kept: in the folder of everything that is cached."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "pellucid" / FILE_NAME


def origin() -> str:
    """Where `Thresholds.current` comes from, for `doctor`."""
    if os.environ.get(VARIABLE):
        return f"from {VARIABLE}"
    measured = platform_key(default_device()) in _entries()
    return f"measured, in {file_path()}" if measured else "defaults, not measured here"


def _entries() -> dict[str, dict[str, int]]:
    try:
        entries = json.loads(file_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    valid = isinstance(entries, dict) and all(
        isinstance(entry, dict) and all(type(value) is int for value in entry.values())
        for entry in entries.values()
    )
    return entries if valid else {}
