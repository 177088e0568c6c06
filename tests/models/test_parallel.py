"""Every architecture on several ranks against `transformers`. The ranks are threads here."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from pellucid.errors import ConfigError
from pellucid.kernels.ranks import Ranks
from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.load.sharded import shard
from pellucid.load.weights import open_weights
from pellucid.models.base import Model
from pellucid.models.registry import build_model
from tests.models.stepping import logits, random_tokens
from tests.models.test_logits import CPU, VARIANTS, assert_same, ours, theirs
from tests.tiny_models import DENSE, SPARSE, make_hf, write_gguf

VOCAB = 98  # of three ranks two have more rows of it than the third
LENGTH = 40
DENSE_VARIANTS = {name: each for name, each in VARIANTS.items() if each[0] not in SPARSE}


class Table:
    """Where threads lay down their parts and take up all."""

    def __init__(self, size: int) -> None:
        self.parts: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def all(self, rank: int, part: Any) -> list[Any]:
        self.parts[rank] = part
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts


class ThreadRanks(Ranks):
    def __init__(self, rank: int, table: Table) -> None:
        self.rank = rank
        self.size = len(table.parts)
        self.table = table

    def sum(self, part: Tensor) -> Tensor:
        return torch.stack(self.table.all(self.rank, part)).sum(0)

    def joined(self, part: Tensor, width: int) -> Tensor:
        whole = torch.cat(self.table.all(self.rank, part), dim=-1)
        assert whole.shape[1] == width
        return whole


def share(path: Path, ranks: Ranks) -> Model:
    files = ModelFiles("gguf" if path.suffix == ".gguf" else "hf", path, path.name)
    config = load_config(files)
    weights = open_weights(files, config)
    ops = ReferenceOps()
    ops.ranks = ranks
    mine, own = shard(weights, config, ranks.rank, ranks.size)
    return build_model(own, mine, ops, torch.float32, CPU)


def together(path: Path, size: int, tokens: list[int]) -> Tensor:
    """The logits, which have to be the same on all ranks."""
    table = Table(size)

    def run(rank: int) -> Tensor:
        try:
            return logits(share(path, ThreadRanks(rank, table)), tokens)
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        first, *rest = pool.map(run, range(size))
    assert all(torch.equal(first, other) for other in rest)
    return first


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("arch", DENSE)
def test_logits_equal_transformers(arch: str, size: int, tmp_path: Path) -> None:
    # Of two key/value heads each has a rank, or two ranks.
    heads = {3: (6, 3), 4: (4, 2), 2: (4, 2)}[size]
    names = ("num_attention_heads", "num_key_value_heads")
    width = {"hidden_size": 96} if size == 3 else {}
    overrides = {"vocab_size": VOCAB, **dict(zip(names, heads, strict=True)), **width}
    reference = make_hf(arch, tmp_path, **overrides)
    tokens = random_tokens(LENGTH, VOCAB)
    assert_same(together(tmp_path, size, tokens), theirs(reference, tokens))


@pytest.mark.parametrize(("arch", "overrides"), DENSE_VARIANTS.values(), ids=DENSE_VARIANTS)
def test_variants_equal_transformers(arch: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    reference = make_hf(arch, tmp_path, **overrides)
    tokens = random_tokens(LENGTH, 96)
    assert_same(together(tmp_path, 2, tokens), theirs(reference, tokens))


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    make_hf("mixtral", tmp_path)
    with pytest.raises(ConfigError, match="tensor_parallel_size: a mixture of experts"):
        share(tmp_path, ThreadRanks(0, Table(2)))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantised_files_equal_themselves_on_one_rank(kind: str, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "hf", intermediate_size=128)
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path / "hf", path, gguf.GGMLQuantizationType[kind])
    tokens = random_tokens(LENGTH, 96)
    assert_same(together(path, 2, tokens), logits(ours(path), tokens))
