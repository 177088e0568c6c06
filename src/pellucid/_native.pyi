"""The C++ kernels (csrc/). What each call does is said there: csrc/kernels.h and csrc/program.h."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[Any] | Tensor

def isa() -> str: ...
def features() -> dict[str, bool]: ...

class WeightFormat:
    @staticmethod
    def make(
        kind: Literal["int4", "int8", "bfloat16", "float32"],
        scale_kind: Literal["half", "float", "super"] = "half",
        group: int = 32,
        zero: int = 0,
        has_minima: bool = False,
        round_activations: bool = False,
    ) -> WeightFormat: ...
    @property
    def kind(self) -> Literal["int4", "int8", "bfloat16", "float32"]: ...
    @property
    def scale_kind(self) -> Literal["half", "float", "super"]: ...
    @property
    def group(self) -> int: ...
    @property
    def zero(self) -> int: ...
    @property
    def has_minima(self) -> bool: ...
    @property
    def round_activations(self) -> bool: ...

class PackedWeight:
    @staticmethod
    def from_bytes(n: int, k: int, format: WeightFormat, data: Array) -> PackedWeight: ...
    def to_bytes(self) -> NDArray[Any]: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def format(self) -> WeightFormat: ...
    @property
    def nbytes(self) -> int: ...

def pack_quantised(
    q: Array, scales: Array, minima: Array | None = None, *, bits: int, group: int, zero: int = 0
) -> PackedWeight: ...
def pack_super(
    q: Array,
    sub_scales: Array,
    super_scales: Array,
    sub_minima: Array | None = None,
    super_minima: Array | None = None,
    *,
    bits: int,
    group: int,
    zero: int = 0,
) -> PackedWeight: ...
def pack_float(w: Array) -> PackedWeight: ...
def pack_bfloat16(w: Array, round_activations: bool = False) -> PackedWeight: ...
def quantize_rows(x: Array, out: Array, outliers: Sequence[int] = ()) -> None: ...
def gemm(
    w: PackedWeight,
    x: Array,
    y: Array,
    bias: Array | None = None,
    col_begin: int = 0,
    col_end: int | None = None,
    outliers: Sequence[int] = (),
) -> None: ...
def gemm_float(
    w: PackedWeight,
    x: Array,
    y: Array,
    bias: Array | None = None,
    col_begin: int = 0,
    col_end: int | None = None,
) -> None: ...
def dequantize_row(w: PackedWeight, row: int, out: Array) -> None: ...
def multiply_in_registers(arithmetic: str, rounds: int) -> int: ...
def read_all(data: Array) -> int: ...
def sample(
    team: ThreadTeam,
    logits: Array,
    rows: Array,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    min_p: Array,
    seed: Array,
    position: Array,
    token_ids: Array,
    failed: Array,
) -> None: ...
def logprobs(
    team: ThreadTeam,
    logits: Array,
    token_ids: Array,
    chosen: Array,
    rank: Array,
    top_ids: Array,
    top: Array,
) -> None: ...
def penalise(
    team: ThreadTeam,
    logits: Array,
    rows: list[int],
    token_ids: list[NDArray[Any]],
    generated: list[NDArray[Any]],
    weights: list[tuple[float, float, float]],
) -> None: ...

class ThreadTeam:
    def __init__(self, num_threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...

class Columns:
    def __init__(self, buffer: int, begin: int, count: int) -> None: ...
    @property
    def buffer(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def count(self) -> int: ...

class KVPool:
    def __init__(
        self, k: Array, v: Array, k_scale: Array | None = None, v_scale: Array | None = None
    ) -> None: ...

class LoraTable:
    def __init__(self, k: int, sizes: list[int], max_rank: int) -> None: ...
    def set(self, adapter: int, a: PackedWeight, b: Sequence[PackedWeight | None]) -> None: ...
    def remove(self, adapter: int) -> None: ...

class Program:
    def add_buffer(self, columns: int) -> int: ...
    def embedding(
        self, out: Columns, table: PackedWeight, scale: float = 1.0, index: str = "tokens"
    ) -> None: ...
    def linear(
        self, out: Columns, x: Columns, weight: PackedWeight, bias: Array | None = None
    ) -> None: ...
    def rms_norm(self, out: Columns, x: Columns, weight: Array, eps: float) -> None: ...
    def add_rms_norm(
        self,
        out: Columns,
        total: Columns,
        update: Columns,
        residual: Columns | None,
        weight: Array,
        eps: float,
    ) -> None: ...
    def layer_norm(
        self, out: Columns, x: Columns, weight: Array, bias: Array, eps: float
    ) -> None: ...
    def add_layer_norm(
        self,
        out: Columns,
        total: Columns,
        update: Columns,
        residual: Columns | None,
        weight: Array,
        bias: Array,
        eps: float,
    ) -> None: ...
    def rope_and_write_kv(
        self,
        out: Columns,
        q: Columns,
        k: Columns,
        v: Columns,
        cos: Array,
        sin: Array,
        pool: KVPool,
    ) -> None: ...
    def write_kv(self, k: Columns, v: Columns, pool: KVPool) -> None: ...
    def paged_attention(
        self,
        out: Columns,
        q: Columns,
        pool: KVPool,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> None: ...
    def silu_mul(self, out: Columns, gate_up: Columns) -> None: ...
    def gelu_mul(self, out: Columns, gate_up: Columns, approximate: bool) -> None: ...
    def gelu(self, out: Columns, x: Columns, approximate: bool) -> None: ...
    def softcap(self, out: Columns, x: Columns, cap: float) -> None: ...
    def experts(
        self,
        out: Columns,
        x: Columns,
        scores: Columns,
        gate: Sequence[PackedWeight],
        up: Sequence[PackedWeight],
        down: Sequence[PackedWeight],
        top_k: int,
        normalise: bool,
        activation: Literal["silu", "gelu", "gelu_tanh"],
        shared: Columns | None = None,
    ) -> None: ...
    def finalize(self, output: Columns, max_rows: int) -> None: ...
    def run(
        self,
        team: ThreadTeam,
        token_ids: Array,
        positions: Array,
        slot_mapping: Array,
        block_tables: Array,
        query_start: Array,
        seq_lens: Array,
        sampled: Array,
        out: Array,
        adapters: Array | None = None,
    ) -> None: ...
    def find_likeliest(
        self,
        team: ThreadTeam,
        token_ids: Array,
        positions: Array,
        slot_mapping: Array,
        block_tables: Array,
        query_start: Array,
        seq_lens: Array,
        sampled: Array,
        chosen: Array,
        failed: Array,
        adapters: Array | None = None,
    ) -> None: ...
    @property
    def can_find_likeliest(self) -> bool: ...
    def lora(self, y: Columns, x: Columns, table: LoraTable) -> None: ...
    def learn_outliers(
        self,
        token_ids: Array,
        positions: Array,
        slot_mapping: Array,
        block_tables: Array,
        query_start: Array,
        seq_lens: Array,
        sampled: Array,
        out: Array,
    ) -> None: ...
    def describe(self) -> list[str]: ...
    def poison(self) -> None: ...
    def times(self) -> list[int]: ...
    timed: bool
    @property
    def arena_bytes(self) -> int: ...
