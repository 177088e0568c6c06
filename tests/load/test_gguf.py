"""The GGUF reader, against the `gguf` package's writer and against damaged and hostile files."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.errors import ModelError
from pellucid.load import gguf as module
from pellucid.load.gguf import read_gguf
from pellucid.quant.types import GGML_TYPES, GGML_TYPES_BY_NAME

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


# ---- what a writer writes is what we read


@pytest.fixture
def written(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -30_000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße \U0001f600\n")
    writer.add_array("a.strings", ["", "a", "▁word", "\u0120x"])
    writer.add_array("a.ints", [1, 2, 3])
    writer.add_array("a.floats", [1.5, -2.5])
    writer.add_array("a.bools", [True, False])
    rng = np.random.default_rng(0)
    writer.add_tensor("matrix", rng.standard_normal((3, 5), dtype=np.float32))
    writer.add_tensor("cube", rng.standard_normal((2, 3, 4)).astype(np.float16))
    writer.add_tensor("vector", np.arange(7, dtype=np.float32))
    blocks = gguf.quants.quantize(
        rng.standard_normal((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q5_1
    )
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_metadata_of_every_kind(written: Path) -> None:
    file = read_gguf(written)
    reader = gguf.GGUFReader(written)
    assert file.version == 3
    own = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert file.metadata == own
    assert file.metadata["a.string"] == "Grüße \U0001f600\n"
    assert file.metadata["a.bool"] is True
    assert all(type(value) is not np.ndarray for value in file.metadata.values())


def test_tensors_without_copies(written: Path) -> None:
    file = read_gguf(written)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(written).tensors}
    assert file.tensors.keys() == reader.keys()
    for name, tensor in file.tensors.items():
        assert tensor.shape == tuple(reversed(reader[name].shape.tolist()))
        assert tensor.ggml_type == reader[name].tensor_type.name
        assert tensor.raw.tobytes() == reader[name].data.tobytes()
        assert not tensor.raw.flags.writeable
        assert tensor.raw.base is not None
    assert file.tensors["cube"].raw.shape == (6, 8)
    assert file.tensors["blocks"].raw.shape == (4, 48)


def test_the_table_of_types_is_that_of_gguf() -> None:
    for number, own in GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert own.name == theirs.name
        assert (own.block_size, own.block_bytes) == gguf.GGML_QUANT_SIZES[theirs]
    assert len(GGML_TYPES_BY_NAME) == len(GGML_TYPES)


# ---- files made by hand


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0
) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def image(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = bytes(64),
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    pairs, tensors = pairs or [], tensors or []
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def read(content: bytes, folder: Path) -> module.GGUFFile:
    path = folder / "m.gguf"
    path.write_bytes(content)
    return read_gguf(path)


def test_a_file_made_by_hand(tmp_path: Path) -> None:
    file = read(image([pair(b"k", U32, b"\1\0\0\0")], [tensor(shape=(4, 2))], version=2), tmp_path)
    assert file.version == 2
    assert file.metadata == {"k": 1}
    assert file.tensors["t"].shape == (2, 4)


def test_arrays_of_arrays(tmp_path: Path) -> None:
    inner = struct.pack("<IQ", U8, 2) + b"\5\6"
    outer = struct.pack("<IQ", ARRAY, 2) + inner + inner
    assert read(image([pair(b"k", ARRAY, outer)]), tmp_path).metadata == {"k": [[5, 6], [5, 6]]}


HUGE = (1 << 64) - 1
NESTED = struct.pack("<IQ", ARRAY, 1) * 5 + struct.pack("<IQ", U8, 0)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "magic": (image(magic=b"GGML"), "not a GGUF file"),
    "short magic": (b"GG", "the file ends inside the header"),
    "version 1": (image(version=1), "version is 1"),
    "version 4": (image(version=4), "version is 4"),
    "big-endian": (image(version=3 << 24), "big-endian"),
    "pair count": (image(num_pairs=HUGE), f"claims {HUGE} metadata keys"),
    "pair count, plausible": (image(num_pairs=60_000), "ends inside|twice"),
    "tensor count": (image(num_tensors=HUGE), f"claims {HUGE} tensors"),
    "tensor count, plausible": (image(num_tensors=60_000), "ends inside|dimensions"),
    "key length": (image([struct.pack("<Q", HUGE)]), "metadata key is .* bytes long"),
    "key longer than allowed": (image([pair(b"k" * 70_000, U8, b"\0")]), "limit is 65535"),
    "key not UTF-8": (image([pair(b"\xff", U8, b"\0")]), "metadata key is not valid UTF-8"),
    "key twice": (image([pair(b"k", U8, b"\0")] * 2), "metadata 'k' twice"),
    "value type": (image([pair(b"k", 13, b"\0")]), "unknown type 13"),
    "string length": (image([pair(b"k", STRING, struct.pack("<Q", HUGE))]), "bytes long"),
    "string past the end": (
        image([pair(b"k", STRING, struct.pack("<Q", 1000))]),
        "the file ends inside metadata 'k'",
    ),
    "string not UTF-8": (image([pair(b"k", STRING, string(b"\xc3"))]), "'k' is not valid UTF-8"),
    "array type": (image([pair(b"k", ARRAY, struct.pack("<IQ", 99, 1))]), "unknown type 99"),
    "array count": (
        image([pair(b"k", ARRAY, struct.pack("<IQ", U8, HUGE))]),
        "more than .* items",
    ),
    "array count, plausible": (
        image([pair(b"k", ARRAY, struct.pack("<IQ", F64, 4_000_000))]),
        "ends inside",
    ),
    "strings count": (
        image([pair(b"k", ARRAY, struct.pack("<IQ", STRING, 4_000_000))]),
        "ends inside",
    ),
    "strings length": (
        image([pair(b"k", ARRAY, struct.pack("<IQQ", STRING, 1, HUGE))]),
        "ends inside",
    ),
    "strings not UTF-8": (
        image([pair(b"k", ARRAY, struct.pack("<IQ", STRING, 1) + string(b"\x80"))]),
        "an item of metadata 'k' is not valid UTF-8",
    ),
    "arrays nested": (image([pair(b"k", ARRAY, NESTED)]), "more than 4 deep"),
    "alignment zero": (image([pair(b"general.alignment", U32, bytes(4))]), "must be from 1"),
    "alignment huge": (image([pair(b"general.alignment", U32, b"\xff" * 4)]), "must be from 1"),
    "alignment odd": (
        image([pair(b"general.alignment", U32, struct.pack("<I", 48))]),
        "power of two",
    ),
    "alignment text": (image([pair(b"general.alignment", STRING, string(b"32"))]), "must be from"),
    "no dimensions": (image(tensors=[tensor(shape=())]), "has 0 dimensions"),
    "five dimensions": (image(tensors=[tensor(shape=(1,) * 5)]), "has 5 dimensions"),
    "dimension count": (image(tensors=[string(b"t") + b"\xff" * 4]), "4294967295 dimensions"),
    "empty dimension": (image(tensors=[tensor(shape=(8, 0))]), "empty dimension"),
    "product of dimensions": (image(tensors=[tensor(shape=(1 << 32, 1 << 32))]), "ends inside"),
    "dimensions that wrap": (image(tensors=[tensor(shape=(1 << 62, 1 << 62, 16))]), "ends inside"),
    "tensor type": (image(tensors=[tensor(kind=4)]), "type number 4"),
    "partial block": (image(tensors=[tensor(shape=(33,), kind=2)]), "block of 32"),
    "tensor twice": (image(tensors=[tensor(), tensor(offset=32)]), "the tensor 't' twice"),
    "unaligned offset": (image(tensors=[tensor(offset=16)]), "not aligned to 32"),
    "offset past the end": (image(tensors=[tensor(offset=64)]), "ends inside tensor 't'"),
    "offset that wraps": (image(tensors=[tensor(offset=HUGE - 31)]), "ends inside tensor 't'"),
    "tensor past the end": (image(tensors=[tensor(shape=(17,))]), "download complete"),
    "overlap": (
        image(tensors=[tensor(shape=(9,)), tensor(b"u", offset=32)]),
        "'t' and 'u' overlap",
    ),
    "same offset": (image(tensors=[tensor(), tensor(b"u")]), "overlap"),
    "hostile name": (image(tensors=[tensor(b"\n" * 60_000, kind=4)]), "type number 4"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    with pytest.raises(ModelError, match=message) as caught:
        read(content, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_every_truncation_is_an_error(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    end = max(int(t.data_offset + t.n_bytes) for t in gguf.GGUFReader(written).tensors)
    read(content[:end], tmp_path)
    for length in [*range(0, end, 7), end - 1]:
        with pytest.raises(ModelError):
            read(content[:length], tmp_path)


def test_a_header_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ModelError, match="header is larger"):
        read(image([pair(b"k", STRING, string(b"x" * 200))]), tmp_path)


def test_a_sparse_giant_costs_no_memory(tmp_path: Path) -> None:
    """A header that claims much, in a file that is long enough to back the claim."""
    path = tmp_path / "m.gguf"
    path.write_bytes(image([pair(b"k", ARRAY, struct.pack("<IQ", U8, 1 << 36))]))
    os.truncate(path, 1 << 37)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="items"):
        read_gguf(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


@pytest.mark.parametrize("name", ["none.gguf", "folder"])
def test_files_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="cannot read"):
        read_gguf(tmp_path / name)


# ---- fuzzing: a ModelError or a file that holds together, nothing else

VALID = image(
    [
        pair(b"general.alignment", U32, struct.pack("<I", 32)),
        pair(b"s", STRING, string("é".encode())),
        pair(b"a", ARRAY, struct.pack("<IQ", STRING, 2) + string(b"x") + string(b"yz")),
        pair(b"n", ARRAY, struct.pack("<IQ", F32, 2) + bytes(8)),
    ],
    [tensor(b"t", (4, 2)), tensor(b"u", (32,), kind=2, offset=32)],
)


def check(content: bytes, folder: Path) -> None:
    try:
        file = read(content, folder)
    except ModelError:
        return
    for item in file.tensors.values():
        item.raw.sum()  # touches every byte of the view


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=8)), max_size=4
    ),
    length=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_mutated_files(changes: list[tuple[int, bytes]], length: int, tmp_path: Path) -> None:
    content = bytearray(VALID)
    for position, value in changes:
        content[position : position + len(value)] = value
    check(bytes(content[:length]), tmp_path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, len(VALID) - 8),
    value=st.sampled_from([0, 1, 0xFF, 1 << 31, 1 << 32, 1 << 62, 1 << 63, HUGE, HUGE - 31]),
)
def test_counts_and_offsets_at_the_edges(position: int, value: int, tmp_path: Path) -> None:
    check(VALID[:position] + struct.pack("<Q", value) + VALID[position + 8 :], tmp_path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=200))
def test_garbage_after_a_good_beginning(tail: bytes, tmp_path: Path) -> None:
    check(b"GGUF\3\0\0\0" + tail, tmp_path)


@pytest.mark.model
def test_the_default_model(smollm2_path: Path) -> None:
    file = read_gguf(smollm2_path)
    assert len(file.tensors) == 272
    assert file.metadata["general.architecture"] == "llama"
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 49152
    assert tokens[1] == "<|im_start|>"
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert file.tensors["token_embd.weight"].ggml_type == "Q8_0"
