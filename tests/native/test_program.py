"""Programs as a whole: fusing, memory, sampled rows, threads, and what they refuse."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.kernels.reference import ReferenceOps

from .programs import Recorder, assert_close, native, run, slices

REFERENCE = ReferenceOps()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def int8_weight(n: int, k: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (n, k), dtype=np.uint8)
    return native.pack_quantised(
        q, np.full((n, k // 32), 2**-8, np.float32), None, bits=8, group=32, zero=128
    )


class RandomProgram:
    """Row-wise ops on random earlier values, recorded, and evaluated by the reference beside."""

    COLUMNS = (32, 64, 96)

    def __init__(self, seed: int, num_ops: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.recorder = Recorder()
        inputs = random(20, 64, seed=seed)
        self.values: list[tuple[Any, Tensor]] = [(self.recorder.rows(inputs), inputs)]
        for _ in range(num_ops):
            self.rng.choice([self.linear, self.norm, self.gate, self.gelu, self.view])()

    def pick(self, columns: int | None = None) -> tuple[Any, Tensor]:
        """An earlier value, of so many columns if there is one, else any."""
        fitting = [value for value in self.values if columns in (None, value[1].shape[1])]
        return fitting[self.rng.integers(len(fitting))]

    def keep(self, name: str, result: Tensor, *arguments: object) -> None:
        self.values.append((self.recorder.op(name, result.shape[1], *arguments), result))

    def linear(self) -> None:
        x, value = self.pick()
        weight = random(int(self.rng.choice(self.COLUMNS)), value.shape[1], seed=len(self.values))
        weight /= weight.shape[1] ** 0.5
        bias = random(len(weight)) if self.rng.random() < 0.5 else None
        result = value @ weight.T + (0 if bias is None else bias)
        self.keep("linear", result, x, native.pack_float(weight), bias)

    def norm(self) -> None:
        update, a = self.pick()
        residual, b = self.pick(a.shape[1])
        weight = random(a.shape[1])
        out, total = self.recorder.new(a.shape[1]), self.recorder.new(a.shape[1])
        self.recorder.program.add_rms_norm(out, total, update, residual, weight, 1e-5)
        normed, wide = REFERENCE.add_rms_norm(a, b, weight, 1e-5)
        self.values += [(out, normed), (total, wide)]

    def gate(self) -> None:
        x, value = self.pick()
        self.keep("silu_mul", REFERENCE.silu_mul(value), x)

    def gelu(self) -> None:
        x, value = self.pick()
        self.keep("gelu", REFERENCE.gelu(value, True), x, True)

    def view(self) -> None:
        x, value = self.pick()
        if value.shape[1] > 32:
            self.values.append((slices(x, 16, 16, value.shape[1] - 32)[1], value[:, 16:32]))

    def result(self) -> tuple[Any, Tensor]:
        """The last value that is a buffer of its own."""
        return next(v for v in reversed(self.values) if v[0].begin == 0 and v[1].shape[1] != 16)


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int) -> None:
    """Memory is poisoned, and reused as soon as it can be: a lifetime cut short shows."""
    random_program = RandomProgram(seed, num_ops=30)
    output, expected = random_program.result()
    program = random_program.recorder.finish(output)
    width = expected.shape[1]
    result = run(program, range(20), width)
    assert_close(result, expected, 1e-4)
    for threads in (1, 3, 4):
        assert torch.equal(run(program, range(20), width, threads=threads), result)
    assert torch.equal(run(program, [13], width), result[13:14])


@pytest.mark.parametrize("op", ["rms_norm", "gelu", "silu_mul", "linear and silu_mul"])
def test_joined_ops_give_the_bits_of_single_ones(op: str) -> None:
    """What an op passes on in quantised form is what it would have put out."""
    x, gate_up, last = random(10, 128), int8_weight(192, 128), int8_weight(50, 96)
    calls = {
        "rms_norm": lambda r, a: r.op("rms_norm", 96, slices(a, 96)[0], random(96), 1e-5),
        "gelu": lambda r, a: r.op("gelu", 96, slices(a, 96)[0], True),
        "silu_mul": lambda r, a: r.op("silu_mul", 96, a),
        "linear and silu_mul": lambda r, a: r.op("silu_mul", 96, r.op("linear", 192, a, gate_up)),
    }
    x = random(10, 192) if op == "silu_mul" else x
    joined, single, rest = Recorder(), Recorder(), Recorder()
    out = joined.op("linear", 50, calls[op](joined, joined.rows(x)), last)
    result = run(joined.finish(out), range(10), 50)
    between = run(single.finish(calls[op](single, single.rows(x))), range(10), 96)
    out = rest.op("linear", 50, rest.rows(between), last)
    assert torch.equal(result, run(rest.finish(out), range(10), 50))


class TinyModel:
    """Two layers of a transformer with int8 weights; records the program and keeps its pools."""

    HIDDEN, HEADS, GROUPS, DIM, INNER, VOCAB, BLOCK = 96, 4, 2, 16, 160, 300, 4

    def __init__(self, layers: int = 2, max_rows: int = 64) -> None:
        r = self.recorder = Recorder()
        hidden, q_size, kv_size = self.HIDDEN, self.HEADS * self.DIM, self.GROUPS * self.DIM
        positions = torch.arange(100)[:, None] * 0.5 ** torch.arange(self.DIM // 2)
        table = int8_weight(self.VOCAB, hidden)
        norm, head_norm = random(hidden), random(self.DIM)
        self.pools = [
            [torch.full((30, self.BLOCK, self.GROUPS, self.DIM), torch.nan) for _ in "kv"]
            for _ in range(layers)
        ]
        x, update = None, r.new(hidden)
        r.program.embedding(update, table)
        for layer, pool in enumerate(self.pools):
            kv = native.KVPool(*pool)
            normed, x = self.add_norm(update, x, norm)
            qkv = r.op(
                "linear",
                q_size + 2 * kv_size,
                normed,
                int8_weight(q_size + 2 * kv_size, hidden, layer),
            )
            q, k, v = slices(qkv, q_size, kv_size, kv_size)
            q = r.op("rms_norm", q_size, q, head_norm, 1e-5)
            k = r.op("rms_norm", kv_size, k, head_norm, 1e-5)
            q = r.op("rope_and_write_kv", q_size, q, k, v, positions.cos(), positions.sin(), kv)
            mixed = r.op("paged_attention", q_size, q, kv, 0.25)
            update = r.op("linear", hidden, mixed, int8_weight(hidden, q_size, layer))
            normed, x = self.add_norm(update, x, norm)
            both = r.op(
                "linear", 2 * self.INNER, normed, int8_weight(2 * self.INNER, hidden, layer)
            )
            update = r.op(
                "linear",
                hidden,
                r.op("silu_mul", self.INNER, both),
                int8_weight(hidden, self.INNER, layer),
            )
        normed, _ = self.add_norm(update, x, norm)
        logits = r.op("linear", self.VOCAB, normed, table)
        self.program = r.finish(r.op("softcap", self.VOCAB, logits, 30.0), max_rows)

    def add_norm(self, update: Any, residual: Any, weight: Tensor) -> tuple[Any, Any]:
        out, total = self.recorder.new(self.HIDDEN), self.recorder.new(self.HIDDEN)
        self.recorder.program.add_rms_norm(out, total, update, residual, weight, 1e-5)
        return out, total

    def step(
        self,
        parts: list[tuple[list[int], int, int]],
        sampled: list[int] | None = None,
        threads: int = 2,
    ) -> Tensor:
        """Parts (tokens of a sequence, first, end) in one step; the i-th has blocks 10 i ..."""
        rows = [
            (i, p, tokens[p])
            for i, (tokens, first, end) in enumerate(parts)
            for p in range(first, end)
        ]
        positions = torch.tensor([p for _, p, _ in rows])
        sizes = [end - first for _, first, end in parts]
        return run(
            self.program,
            [token for _, _, token in rows],
            self.VOCAB,
            positions=positions,
            slots=torch.tensor([40 * i + p for i, p, _ in rows]),
            tables=torch.arange(10 * len(parts), dtype=torch.int32).view(-1, 10),
            query_start=torch.tensor([0, *sizes]).cumsum(0).int(),
            seq_lens=torch.tensor([end for _, _, end in parts], dtype=torch.int32),
            sampled=None if sampled is None else torch.tensor(sampled, dtype=torch.int64),
            threads=threads,
        )


class OddHeads(TinyModel):
    """48 columns per key/value head are no whole number of quantisation groups."""

    HEADS = 6


PROMPT = [7, 250, 3, 3, 90, 121, 200, 11, 45, 299, 0, 61]
OTHER = [5, 17, 170, 4, 80]


@pytest.mark.parametrize("kind", [TinyModel, OddHeads])
def test_a_prompt_in_any_pieces_gives_the_same_bits(kind: type[TinyModel]) -> None:
    whole = kind().step([(PROMPT, 0, 12)])
    assert whole.isfinite().all()
    assert whole.std() > 0.1
    for cut in (1, 5, 11):
        model = kind()
        parts = [model.step([(PROMPT, 0, cut)]), model.step([(PROMPT, cut, 12)], threads=3)]
        assert torch.equal(torch.cat(parts), whole)


def test_company_does_not_matter() -> None:
    alone = TinyModel().step([(PROMPT, 0, 12)])
    model = TinyModel()
    model.step([(PROMPT, 0, 11), (OTHER, 0, 2)])
    together = model.step([(PROMPT, 11, 12), (OTHER, 2, 5)])
    assert torch.equal(together[:1], alone[11:])


def test_only_sampled_rows_are_put_out() -> None:
    whole = TinyModel().step([(PROMPT, 0, 12), (OTHER, 0, 5)])
    for sampled in ([16], [11, 16], [4, 0, 0, 8], []):
        assert torch.equal(
            TinyModel().step([(PROMPT, 0, 12), (OTHER, 0, 5)], sampled), whole[sampled]
        )


def test_the_list_is_short() -> None:
    """What the notes at the top of program.h promise; the numbers of the first layer."""
    lines = [line.split()[0] for line in TinyModel(layers=1).program.describe()]
    assert lines == [
        "embedding",
        "rms_norm",  # with the quantisation of its result
        "linear",
        "rope_and_write_kv",  # with the norms of q and k
        "paged_attention",
        "gather",  # the residual stream
        "gather",  # what attention gave
        "linear",
        "rms_norm",
        "linear",  # with silu_mul
        "linear",
        "rms_norm",
        "linear",  # with the soft cap
    ]


def test_memory_is_reused() -> None:
    assert TinyModel(layers=12).program.arena_bytes == TinyModel(layers=2).program.arena_bytes


def test_two_callers_of_one_team_take_turns() -> None:
    model, team = TinyModel(), native.ThreadTeam(3)
    expected = model.step([(PROMPT, 0, 12)])
    ids = np.array(PROMPT)
    outs = [np.full((12, model.VOCAB), np.nan, np.float32) for _ in range(4)]

    def repeat(out: np.ndarray) -> None:
        for _ in range(50):
            model.program.run(
                team, ids, np.arange(12), np.arange(12), np.arange(10, dtype=np.int32)[None],
                np.array([0, 12], np.int32), np.array([12], np.int32), np.arange(12), out,
            )  # fmt: skip

    threads = [threading.Thread(target=repeat, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(out, expected.numpy()) for out in outs)


def test_more_threads_than_cores() -> None:
    expected = TinyModel().step([(PROMPT, 0, 12)], threads=1)
    assert torch.equal(TinyModel().step([(PROMPT, 0, 12)], threads=16), expected)
    with pytest.raises(ValueError, match="1 to 1024"):
        native.ThreadTeam(0)


def test_records_that_cannot_be() -> None:
    r = Recorder()
    x = r.rows(random(4, 64))
    columns = native.Columns
    unwritten = r.new(64)
    with pytest.raises(ValueError, match="not written yet"):
        r.op("gelu", 64, unwritten, True)
    with pytest.raises(ValueError, match="not written yet"):
        r.op("gelu", 65, columns(x.buffer, 0, 65), True)
    with pytest.raises(ValueError, match="not written yet"):
        r.op("gelu", 64, columns(99, 0, 64), True)
    for begin, count in ((-1, 64), (0, 0), (2**62, 2**62)):
        with pytest.raises(ValueError, match="no buffer has columns"):
            columns(x.buffer, begin, count)
    with pytest.raises(ValueError, match="written before"):
        r.program.gelu(x, x, True)
    with pytest.raises(ValueError, match="does not lie in it"):
        r.program.gelu(columns(unwritten.buffer, 1, 64), x, True)
    with pytest.raises(ValueError, match="x has 64 columns, expected 32"):
        r.op("linear", 8, x, native.pack_float(random(8, 32)))
    with pytest.raises(ValueError, match="bias"):
        r.op("linear", 8, x, native.pack_float(random(8, 64)), random(9))
    with pytest.raises(ValueError, match="whole number of weights"):
        r.op("rms_norm", 64, x, random(48), 1e-5)
    with pytest.raises(ValueError, match="not all of its buffer"):
        r.program.finalize(columns(x.buffer, 0, 32), 8)
    with pytest.raises(ValueError, match="max_rows"):
        r.program.finalize(x, 0)
    r.finish(x, max_rows=4)
    with pytest.raises(ValueError, match="finalized"):
        r.new(1)
    with pytest.raises(ValueError, match="5 rows, the program was made for 4"):
        run(r.program, range(5), 64)
    with pytest.raises(ValueError, match=r"token_ids\[1\] is 4, expected 0 to 3"):
        run(r.program, [0, 4], 64)
    with pytest.raises(ValueError, match=r"sampled\[0\] is -1"):
        run(r.program, [0, 1], 64, sampled=torch.tensor([-1]))
    with pytest.raises(ValueError, match="out is not"):
        run(r.program, [0, 1], 63)


def test_positions_and_slots_are_checked() -> None:
    with pytest.raises(ValueError, match="positions"):
        TinyModel().step([([1] * 101, 100, 101)])
    model = TinyModel()
    tables = torch.arange(10, dtype=torch.int32)[None]
    with pytest.raises(ValueError, match=r"slot_mapping\[0\] is 120, expected 0 to 119"):
        run(
            model.program,
            [1],
            model.VOCAB,
            slots=torch.tensor([120]),
            tables=tables,
            query_start=torch.tensor([0, 1]).int(),
            seq_lens=torch.tensor([1]).int(),
        )


def test_each_instruction_is_timed() -> None:
    model = TinyModel()
    assert model.program.times() == []
    model.program.timed = True
    model.step([(PROMPT, 0, 12)])
    times = model.program.times()
    assert len(times) == len(model.program.describe())
    assert all(time >= 0 for time in times)
    assert sum(times) > 0
