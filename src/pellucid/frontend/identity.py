"""What makes two engines give the same answers: model, numbers, version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pellucid import __version__
from pellucid.config import EngineConfig
from pellucid.load.hub import resolve
from pellucid.messages import EngineInfo

SAMPLES = 64  # of each file, evenly spread; a large model is not read from end to end
SAMPLE_BYTES = 1 << 16


def engine_identity(config: EngineConfig, info: EngineInfo) -> str:
    """A digest that is equal for engines whose answers may be exchanged, on any machine.

    Reads samples of the model's files: some milliseconds, and blocking. Raises ModelError.
    """
    digest = hashlib.sha256()
    model = config.model
    facts = (
        *(__version__, info.architecture, info.dtype, info.device, info.kernels),
        *(info.max_model_len, info.vocab_size, info.num_parameters),
        *(config.runner.runner, model.quantization, info.kv_dtype, info.tensor_parallel_size),
    )
    digest.update(repr(facts).encode())
    for path in _files(resolve(model).path):
        digest.update(path.name.encode())
        _add_samples(digest, path)
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    step = max(SAMPLE_BYTES, size // SAMPLES)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
