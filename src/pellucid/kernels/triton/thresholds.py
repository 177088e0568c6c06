"""From which size on an op is left to Triton; below it, torch computes it.

The size is that of a row (its columns), which follows from the model. It is not the number of rows
in a step, although that is what decides which is faster: Triton and torch add in different orders,
so a token would depend on how many others are computed with it.

The defaults are not measured: they take Triton for everything. `PELLUCID_TRITON_THRESHOLDS`
overrides them, as in "rms_norm=256,gated=1024".
"""

import os
from dataclasses import dataclass, fields

VARIABLE = "PELLUCID_TRITON_THRESHOLDS"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The fewest columns for Triton, by op."""

    rms_norm: int = 0  # columns of a normed row: the hidden size, or a head's
    gated: int = 0  # columns of the result of SwiGLU or GeGLU
    rope: int = 0  # columns of a head
    attention: int = 0  # columns of a head

    @classmethod
    def from_environment(cls) -> "Thresholds":
        """The defaults, and what the environment says instead.

        Raises:
            ValueError: an entry that is not NAME=COLUMNS, or of an op that is not here.
        """
        known = {field.name for field in fields(cls)}
        found = {}
        for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
            name, _, columns = entry.partition("=")
            if name.strip() not in known or not columns.strip().isdecimal():
                names = ", ".join(sorted(known))
                raise ValueError(f"{VARIABLE}: {entry!r} is not NAME=COLUMNS; names are {names}")
            found[name.strip()] = int(columns)
        return cls(**found)
