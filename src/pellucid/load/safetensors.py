"""Safetensors checkpoints: one file, or shards with an index.

The safetensors library checks each file's header; checked here is what it cannot know: that an
index points only at files of its own folder, and that the shards hold what it promises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.load.fields import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 4096
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


class SafetensorsFolder:
    """The tensors of a checkpoint folder, read one at a time.

    Attributes:
        shapes: shape of every tensor, by its name in the files.
    """

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        """Open the checkpoint in `folder`: the file `single`, or a model's shards.

        Raises:
            ModelError: no checkpoint, pickles only, a bad index, or a missing or damaged file.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Any] = {}
        promised = _indexed(folder, single)
        for shard in sorted(set(promised.values())) or [single]:
            self._open(folder / shard)
        for name, shard in promised.items():
            if name not in self.shapes:
                raise ModelError(f"{shard} does not hold tensor {name!r:.80}, which {INDEX} lists")

    def read(
        self,
        name: str,
        rows: slice | None = None,
        *,
        expert: int | None = None,
        transposed: bool = False,
    ) -> Tensor:
        """A tensor, or a part of it, as it is stored; it may share the file's memory.

        Args:
            rows: part of the first dimension after transposing.
            expert: which matrix of a stack of them, before anything else.
            transposed: swap the two dimensions of a matrix.
        """
        try:
            view = self._file_of[name].get_slice(name)
            whole = slice(None)
            if expert is not None:
                tensor: Tensor = view[expert : expert + 1, rows or whole][0]
            elif transposed:
                tensor = view[whole, rows or whole].T
            else:
                tensor = view[rows or whole]
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(f"cannot read tensor {name!r:.80}: {error}") from None
        return tensor

    def close(self) -> None:
        """Forget the files; tensors already read stay valid."""
        self._file_of.clear()

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in self.shapes:
                    raise ModelError(f"{path.name} repeats tensor {name!r:.80} of another shard")
                view = file.get_slice(name)
                if view.get_dtype() not in _DTYPES:
                    raise ModelError(
                        f"tensor {name!r:.80} of {path.name} has type {view.get_dtype()};"
                        " supported are F32, F16 and BF16"
                    )
                self.shapes[name] = tuple(view.get_shape())
                self._file_of[name] = file
        except FileNotFoundError:
            raise ModelError(f"{path.name} is missing from {path.parent}") from None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path.name} is damaged: {error}") from None


def _indexed(folder: Path, single: str) -> dict[str, str]:
    """Tensor name -> shard, from the index; empty for a checkpoint of one file."""
    if (folder / single).is_file():
        return {}
    if single != SINGLE or not (folder / INDEX).is_file():
        raise _no_checkpoint(folder, single)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX} has no weight_map")
    for shard in weight_map.values():
        # A name with a directory in it could leave the folder.
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard:
            raise ModelError(f"{INDEX}: {shard!r:.80} is not a plain file name")
        if not shard.endswith(".safetensors"):
            raise ModelError(f"{INDEX}: {shard!r:.80} is not a .safetensors file")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise ModelError(f"{INDEX} lists more than {MAX_SHARDS} shards")
    return weight_map


def _no_checkpoint(folder: Path, single: str) -> ModelError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} holds its weights as a pickle ({pickles[0]}); pickles can run any code and"
            " are never loaded: convert them to safetensors or GGUF"
        )
    if single != SINGLE:
        return ModelError(f"{folder} does not hold {single}")
    return ModelError(f"{folder} holds neither {SINGLE} nor {INDEX}")
