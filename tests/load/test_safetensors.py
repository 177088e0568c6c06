"""Safetensors folders: shards, and the ways in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pellucid.errors import ModelError
from pellucid.load.safetensors import INDEX, SINGLE, SafetensorsFolder

A = torch.arange(12, dtype=torch.float32).reshape(3, 4)
B = torch.arange(6, dtype=torch.bfloat16)


def sharded(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    save_file({"a": A}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": B}, folder / "model-00002-of-00002.safetensors")
    if weight_map is None:
        weight_map = {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_one_file(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / SINGLE)
    folder = SafetensorsFolder(tmp_path)
    assert folder.shapes == {"a": (3, 4), "b": (6,)}
    assert torch.equal(folder.read("a"), A)
    assert torch.equal(folder.read("a", slice(1, 3)), A[1:3])
    assert torch.equal(folder.read("a", slice(1, 3), transposed=True), A.T[1:3])
    assert torch.equal(folder.read("a", transposed=True), A.T)
    assert folder.read("b").dtype == torch.bfloat16


def test_shards(tmp_path: Path) -> None:
    folder = SafetensorsFolder(sharded(tmp_path))
    assert folder.shapes == {"a": (3, 4), "b": (6,)}
    assert torch.equal(folder.read("b"), B)


def test_a_missing_shard(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        SafetensorsFolder(tmp_path)


def test_a_shard_without_its_tensor(tmp_path: Path) -> None:
    names = dict.fromkeys(["a", "b", "c"], "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="does not hold tensor 'b'"):
        SafetensorsFolder(sharded(tmp_path, names))


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": A, "b": B}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match="repeats tensor 'a'"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../secret.safetensors", "not a plain file name"),
        ("/etc/secret.safetensors", "not a plain file name"),
        ("sub/x.safetensors", "not a plain file name"),
        ("..\\x.safetensors", "not a plain file name"),
        ("..", "not a"),
        ("", "not a"),
        (3, "not a plain file name"),
        ("pytorch_model.bin", r"not a \.safetensors file"),
    ],
)
def test_an_index_that_points_elsewhere(shard: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        SafetensorsFolder(sharded(tmp_path, {"a": shard}))


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{", ""]
)
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 8, 40, -1])
def test_a_truncated_file(length: int, tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / SINGLE)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content[:length])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        SafetensorsFolder(tmp_path)


def test_a_header_that_lies(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / SINGLE)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(b"\xff" * 8 + content[8:])
    with pytest.raises(ModelError, match="is damaged"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / name)
    with pytest.raises(ModelError, match=f"{name}.*never loaded"):
        SafetensorsFolder(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        SafetensorsFolder(tmp_path)
