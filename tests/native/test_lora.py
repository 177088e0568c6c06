"""What adapters add to a product, against float64; and the bits of whole models in company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")

from pellucid.kernels.native import NativeOps  # noqa: E402
from tests.models.stepping import random_tokens  # noqa: E402
from tests.models.test_lora import adapt  # noqa: E402
from tests.models.test_native import Replay, load  # noqa: E402
from tests.tiny_adapters import make_peft  # noqa: E402
from tests.tiny_models import make_hf  # noqa: E402

MAX_RANK = 20


def weight(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return rng.standard_normal((n, k), dtype=np.float32)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_updates_are_what_the_formula_says(data: st.DataObject) -> None:
    """Of any sizes and ranks, over any rows, sampled or not, on any number of threads."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    k = data.draw(st.integers(1, 70))
    sizes = data.draw(st.lists(st.integers(1, 600), min_size=1, max_size=3))
    ranks = [
        [data.draw(st.integers(0, MAX_RANK)) for _ in sizes]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    ranks = [row for row in ranks if any(row)]
    num_rows = data.draw(st.integers(1, 80))
    adapters = rng.integers(-1, len(ranks) + 1, num_rows).astype(np.int32)  # one is not there
    sampled = np.sort(rng.choice(num_rows, data.draw(st.integers(1, num_rows)), replace=False))

    table = native.LoraTable(k, sizes, MAX_RANK)
    w, embedding = weight(rng, sum(sizes), k), weight(rng, num_rows, k)
    expected = embedding.astype(np.float64) @ w.T.astype(np.float64)
    for number, row in enumerate(ranks):
        a = [weight(rng, rank, k) for rank in row]
        b = [weight(rng, size, rank) for size, rank in zip(sizes, row, strict=True)]
        table.set(
            number,
            native.pack_float(np.concatenate(a)),
            [native.pack_float(part) if part.size else None for part in b],
        )
        mine = adapters == number
        added = [embedding @ pa.T.astype(np.float64) @ pb.T for pa, pb in zip(a, b, strict=True)]
        expected[mine] += np.concatenate(added, axis=1)[mine]

    program = native.Program()
    x, y = (native.Columns(program.add_buffer(n), 0, n) for n in (k, sum(sizes)))
    program.embedding(x, native.pack_float(embedding))
    program.linear(y, x, native.pack_float(w))
    program.lora(y, x, table)
    program.finalize(y, num_rows)
    program.poison()
    found = np.empty((len(sampled), sum(sizes)), np.float32)
    none = np.zeros(num_rows, np.int64)
    program.run(
        native.ThreadTeam(data.draw(st.integers(1, 3))),
        *(np.arange(num_rows), none, none, np.zeros((1, 1), np.int32)),
        *(np.array([0, num_rows], np.int32), np.array([num_rows], np.int32), sampled, found),
        adapters,
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected[sampled], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ((4, 9), [(5, 4), None], "A does not have the product's input"),
        ((4, 8), [(6, 4), None], "B does not have the projection's outputs"),
        ((4, 8), [(5, 3), None], "A does not have a row for each rank"),
        ((9, 8), [(5, 9), None], "above max_rank"),
        ((4, 8), [(5, 4)], "one B for each projection"),
        ((4, 8), [None, None], "A does not have a row for each rank"),
    ],
)
def test_updates_of_wrong_shapes_are_refused(
    a: tuple[int, int], b: list[tuple[int, int] | None], problem: str
) -> None:
    table = native.LoraTable(8, [5, 7], 8)
    parts = [
        None if shape is None else native.pack_float(np.ones(shape, np.float32)) for shape in b
    ]
    with pytest.raises(ValueError, match=problem):
        table.set(0, native.pack_float(np.ones(a, np.float32)), parts)


def test_a_program_without_adapters_refuses_them() -> None:
    program = native.Program()
    x = native.Columns(program.add_buffer(4), 0, 4)
    program.embedding(x, native.pack_float(np.ones((3, 4), np.float32)))
    program.finalize(x, 2)
    zero = np.zeros(1, np.int64)
    step = (zero, zero, zero, np.zeros((1, 1), np.int32), np.array([0, 1], np.int32))
    step += (np.ones(1, np.int32), zero, np.empty((1, 4), np.float32))
    with pytest.raises(ValueError, match="recorded without adapters"):
        program.run(native.ThreadTeam(1), *step, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="differ in length"):
        program.run(native.ThreadTeam(1), *step, np.zeros(2, np.int32))


@pytest.mark.parametrize("scheme", ["none", "int8"])
@pytest.mark.parametrize("kv", [torch.float32, torch.int8])
def test_chunks_and_company_change_no_bit(scheme: str, kv: torch.dtype, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "hf")
    make_peft(tmp_path / "hf", tmp_path / "a", seed=1)
    make_peft(tmp_path / "hf", tmp_path / "b", seed=2, r=7, target_modules=["v_proj", "up_proj"])
    model = load(tmp_path / "hf", NativeOps(), scheme, max_lora_rank=8)
    adapt(model, 0, tmp_path / "a")
    adapt(model, 5, tmp_path / "b")
    numbers = [0, -1, 5, 0]
    sequences = [random_tokens(70, 96, seed) for seed in range(4)]
    alone = []
    for tokens, number in zip(sequences, numbers, strict=True):
        if number < 0:  # by the program of steps in which nobody has an adapter
            alone.append(Replay(model, [tokens], kv).step({0: 70})[0])
        else:
            alone.append(adapted(model, [tokens], kv).feed({0: 70}, numbers=[number])[0])
    together = adapted(model, sequences, kv)
    parts: list[list[Tensor]] = [[], [], [], []]
    for counts in ({0: 7, 1: 1}, {2: 33, 0: 1, 1: 5, 3: 2}, {1: 64, 0: 62, 3: 1}, {2: 37, 3: 67}):
        for s, part in zip(counts, together.feed(counts, numbers=numbers), strict=True):
            parts[s].append(part)
    for s in range(4):
        assert torch.equal(torch.cat(parts[s]), alone[s])
    assert not torch.equal(alone[0], Replay(model, [sequences[0]], kv).step({0: 70})[0])


class Adapted(Replay):
    def feed(self, counts: dict[int, int], numbers: list[int]) -> list[Tensor]:
        rows = [numbers[s] for s, count in counts.items() for _ in range(count)]
        self.adapters = torch.tensor(rows, dtype=torch.int32)
        return self.step(counts)


def adapted(model: object, sequences: list[list[int]], kv: torch.dtype) -> Adapted:
    with model.adapted([(0, torch.zeros(0))]):  # type: ignore[attr-defined]
        return Adapted(model, sequences, kv)  # type: ignore[arg-type]
