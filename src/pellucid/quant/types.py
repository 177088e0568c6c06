"""The tensor types of GGUF files: how many bytes a block of how many elements takes.

Facts of ggml's file format. No torch and no `gguf` package here, so that a header can be checked
before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A row of n elements takes n / block_size blocks of block_bytes each."""

    name: str
    block_size: int
    block_bytes: int

    def row_bytes(self, num_elements: int) -> int:
        """Bytes of a row; `num_elements` must be a multiple of `block_size`."""
        return num_elements // self.block_size * self.block_bytes


def _types(*rows: tuple[int, str, int, int]) -> dict[int, GGMLType]:
    return {number: GGMLType(name, size, nbytes) for number, name, size, nbytes in rows}


GGML_TYPES = _types(
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
)
"""By the number that stands in the file. A type that is missing here cannot be read."""

GGML_TYPES_BY_NAME = {t.name: t for t in GGML_TYPES.values()}

DENSE_TYPES = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class RawQuant:
    """A matrix still in ggml's blocks, for kernels that repack it without loss.

    `data` is uint8 [out, bytes per row]; rows stand in canonical order.
    """

    ggml_type: str
    shape: tuple[int, int]  # [out, in], in elements
    data: NDArray[np.uint8] = field(repr=False)
