"""A model's weights rounded anew to one of GGUF's types, in a file of their own.

The `gguf` package writes the file; what reads, unpacks and multiplies it is what serves any other
GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pellucid.kernels.interface import IntegerMatrix
from pellucid.load.gguf import GGUFFile, read_gguf
from pellucid.load.quantized import AT_LEAST_8_BITS
from pellucid.load.weights import Weights
from pellucid.quant.gguf_blocks import dequantize
from pellucid.quant.gguf_integers import unpack
from pellucid.quant.types import DENSE_TYPES, GGML_TYPES_BY_NAME, RawQuant

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
CAUTIOUS = "Q8_0"  # of embedding and head, as int4 does it
NOT_WRITTEN = (
    "The gguf package reads K-quants (Q2_K to Q6_K) and IQ types but cannot write them, so none is"
    " rounded to here; a file that has them is measured as it is. It also writes TQ1_0 and TQ2_0,"
    " which are for models trained in three values, and MXFP4, which these kernels round to 8 bits:"
    " they are left out. Embedding and head have Q8_0 with every type, as they have 8 bits with"
    " int4. In memory, kernels keep Q5_0 and Q5_1 as 8-bit integers."
)


class RewrittenWeights(Weights):
    """Weights of a file that `write` made, under their canonical names."""

    def __init__(self, file: GGUFFile) -> None:
        super().__init__({name: tensor.shape for name, tensor in file.tensors.items()})
        self._tensors = file.tensors

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        tensor = self._tensors[name]
        return dequantize(tensor.raw, tensor.ggml_type, dtype).reshape(tensor.shape)

    def raw(self, name: str) -> RawQuant | None:
        tensor = self._tensors[name]
        if tensor.ggml_type in DENSE_TYPES:
            return None
        rows, columns = tensor.shape
        return RawQuant(tensor.ggml_type, (rows, columns), tensor.raw)

    def integers(self, name: str) -> Iterator[IntegerMatrix] | None:
        raw = self.raw(name)
        return None if raw is None else unpack(raw)

    def close(self) -> None:
        self._tensors = {}


def write(weights: Weights, ggml_type: str, path: Path) -> RewrittenWeights:
    """Write `weights` to `path` with every matrix in `ggml_type`, and open that.

    Vectors stay float32, and so do matrices whose columns do not make whole blocks.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "pellucid-lab")
    for name in weights.names():
        values = weights.get(name).numpy()
        kind = CAUTIOUS if name.endswith(AT_LEAST_8_BITS) else ggml_type
        if values.ndim != 2 or values.shape[1] % GGML_TYPES_BY_NAME[kind].block_size:
            writer.add_tensor(name, values)
            continue
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return RewrittenWeights(read_gguf(path))
