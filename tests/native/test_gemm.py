"""Products, packing and quantisation against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.native.formats import (
    EPSILON,
    FLOAT_FORMATS,
    QUANT_FORMATS,
    Case,
    as_bytes,
    make_case,
    meaning,
    quantise,
    row_type,
)

native = pytest.importorskip("pellucid._native", reason="the native kernels are not built")

SHAPES = [(16, 32), (1, 32), (17, 64), (40, 96), (33, 256), (100, 512), (64, 576)]
ROWS = [1, 2, 3, 5, 6, 7, 13, 32, 67]


def poisoned(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, dtype=np.float32)


def product(case: Case, x: np.ndarray, y: np.ndarray | None = None, **columns: int) -> np.ndarray:
    y = poisoned(len(x), case.n) if y is None else y
    if case.quantised:
        native.gemm(case.weight, as_bytes(quantise(x)), y, case.bias, **columns)
    else:
        native.gemm_float(case.weight, x, y, case.bias, **columns)
    return y


@pytest.mark.parametrize("name", [*QUANT_FORMATS, *FLOAT_FORMATS])
def test_product_is_the_formula(name: str, rng: np.random.Generator) -> None:
    for n, k in SHAPES:
        case = make_case(name, n, k, rng)
        if case is None:
            continue
        for rows in ROWS:
            x = rng.standard_normal((rows, k), dtype=np.float32)
            y = product(case, x)
            expected, bound = case.expected(x)
            error = np.abs(y - expected)
            assert (error <= bound).all(), (n, k, rows, float((error / bound).max()))


@pytest.mark.parametrize("name", [*QUANT_FORMATS, *FLOAT_FORMATS])
def test_a_row_does_not_depend_on_the_others(name: str, rng: np.random.Generator) -> None:
    case = make_case(name, 100, 512, rng)
    assert case is not None
    x = rng.standard_normal((67, 512), dtype=np.float32)
    alone = np.concatenate([product(case, x[i : i + 1]) for i in range(len(x))])
    for rows in (2, 3, 4, 5, 6, 7, 8, 11, 16, 31, 67):
        for start in (0, 1, 67 - rows):
            np.testing.assert_array_equal(
                product(case, x[start : start + rows]), alone[start : start + rows]
            )


@pytest.mark.parametrize("name", [*QUANT_FORMATS, *FLOAT_FORMATS])
def test_columns_can_be_split_anywhere(name: str, rng: np.random.Generator) -> None:
    case = make_case(name, 100, 256, rng)
    assert case is not None
    x = rng.standard_normal((7, 256), dtype=np.float32)
    whole = product(case, x)
    for cut in (16, 32, 48, 80, 96):
        y = product(case, x, col_begin=0, col_end=cut)
        assert np.isnan(y[:, cut:]).all(), "wrote past the columns it was given"
        np.testing.assert_array_equal(product(case, x, y, col_begin=cut), whole)


def test_rows_of_y_may_lie_apart(rng: np.random.Generator) -> None:
    case = make_case("q4_1", 40, 64, rng)
    assert case is not None
    x = rng.standard_normal((9, 64), dtype=np.float32)
    wide = poisoned(9, 64)
    product(case, x, wide[:, :40])
    np.testing.assert_array_equal(wide[:, :40], product(case, x))
    assert np.isnan(wide[:, 40:]).all()


@pytest.mark.parametrize("name", [*QUANT_FORMATS, *FLOAT_FORMATS])
def test_dequantised_rows_are_the_weight(name: str, rng: np.random.Generator) -> None:
    case = make_case(name, 40, 512, rng)
    assert case is not None
    for row in (0, 15, 16, 39):
        out = np.full(512, np.nan, dtype=np.float32)
        native.dequantize_row(case.weight, row, out)
        np.testing.assert_array_equal(out, case.rows32[row])


@pytest.mark.parametrize("name", [*QUANT_FORMATS, *FLOAT_FORMATS])
def test_packed_bytes_make_the_same_weight(name: str, rng: np.random.Generator) -> None:
    case = make_case(name, 40, 512, rng)
    assert case is not None
    w = case.weight
    copy = native.PackedWeight.from_bytes(w.n, w.k, w.format, w.to_bytes().copy())
    x = rng.standard_normal((3, 512), dtype=np.float32)
    expected = product(case, x)
    case.weight = copy
    np.testing.assert_array_equal(product(case, x), expected)
    with pytest.raises(ValueError, match="bytes"):
        native.PackedWeight.from_bytes(w.n, w.k, w.format, w.to_bytes()[:-1].copy())


class TestQuantizeRows:
    def test_is_the_formula(self, rng: np.random.Generator) -> None:
        magnitudes = 10.0 ** np.arange(5)[:, None]
        x = (rng.standard_normal((5, 96)) * magnitudes).astype(np.float32)
        blocks = quantise(x)["blocks"]
        groups = x.reshape(5, 3, 32)
        absmax = np.abs(groups).max(-1)
        np.testing.assert_array_equal(blocks["scale"], absmax / np.float32(127))
        inverse = np.float32(127) / absmax
        np.testing.assert_array_equal(blocks["q"], np.rint(groups * inverse[..., None]))
        halves = blocks["q"].reshape(5, 3, 2, 16).sum(-1, dtype=np.int32)
        np.testing.assert_array_equal(blocks["sum16"], halves)
        scaled = blocks["scale"] * halves.sum(-1).astype(np.float32)
        np.testing.assert_array_equal(blocks["scaled_sum"], scaled)

    def test_halves_go_to_even(self) -> None:
        x = np.zeros((1, 32), dtype=np.float32)
        x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
        assert quantise(x)["blocks"]["q"][0, 0, :6].tolist() == [127, 0, 2, 2, 0, -2]

    @pytest.mark.parametrize("value", [0.0, 1e-40, 1e-37])
    def test_nothing_stays_nothing(self, value: float) -> None:
        blocks = quantise(np.full((2, 64), value, dtype=np.float32))["blocks"]
        assert not any(blocks[field].any() for field in blocks.dtype.names)


def test_extreme_quants_do_not_saturate(rng: np.random.Generator) -> None:
    """The largest products there are, and -128, which a quantised row never holds."""
    q = np.full((16, 64), 255, dtype=np.uint8)
    weight = native.pack_quantised(q, np.ones((16, 2), np.float32), bits=8, group=32)
    for value in (127, -127, -128):
        x = np.zeros(3, row_type(64))
        blocks = x["blocks"]
        blocks["q"], blocks["scale"] = value, 1
        blocks["scaled_sum"], blocks["sum16"] = value * 32, value * 16
        y = poisoned(3, 16)
        native.gemm(weight, as_bytes(x), y)
        np.testing.assert_array_equal(y, 255.0 * value * 64)


class TestOutliers:
    COLUMNS = (0, 31, 32, 40, 200, 255)

    def test_stay_as_they_are_and_spare_their_neighbours(self, rng: np.random.Generator) -> None:
        x = rng.standard_normal((5, 256), dtype=np.float32)
        rounding = np.abs(meaning(quantise(x)) - x).max()
        x[:, self.COLUMNS] *= 1000
        rows = quantise(x, self.COLUMNS)
        np.testing.assert_array_equal(rows["outliers"][:, : len(self.COLUMNS)], x[:, self.COLUMNS])
        assert np.abs(meaning(rows, self.COLUMNS) - x).max() <= rounding

    @pytest.mark.parametrize("name", QUANT_FORMATS)
    def test_product_is_the_formula(self, name: str, rng: np.random.Generator) -> None:
        for rows in ROWS:
            case = make_case(name, 100, 256, rng)
            assert case is not None
            x = rng.standard_normal((rows, 256), dtype=np.float32)
            x[:, self.COLUMNS] *= 50
            y = poisoned(rows, 100)
            quantised = quantise(x, self.COLUMNS)
            native.gemm(case.weight, as_bytes(quantised), y, case.bias, outliers=self.COLUMNS)
            meant = meaning(quantised, self.COLUMNS)
            expected = meant @ case.dense.T + (0 if case.bias is None else case.bias)
            bound = 300 * EPSILON * (np.abs(meant) @ np.abs(case.dense).T + 1)
            assert (np.abs(y - expected) <= bound).all()

    def test_have_to_be_columns_in_order(self) -> None:
        for outliers, message in (
            ([1, 1], "ascending"),
            ([-1], "ascending"),
            ([64], "ascending"),
            (range(9), "more than 8"),
        ):
            with pytest.raises(ValueError, match=message):
                quantise(np.ones((2, 64), np.float32), list(outliers))


def test_no_rows_is_no_work(rng: np.random.Generator) -> None:
    case = make_case("q4_0", 16, 32, rng)
    assert case is not None
    assert product(case, np.zeros((0, 32), np.float32)).shape == (0, 16)


class TestRefusals:
    def test_shapes_that_do_not_fit(self, rng: np.random.Generator) -> None:
        case = make_case("q4_0", 32, 64, rng)
        assert case is not None
        x = as_bytes(quantise(np.ones((2, 64), np.float32)))
        with pytest.raises(ValueError, match="x has shape"):
            native.gemm(case.weight, x[:, :44].copy(), poisoned(2, 32))
        with pytest.raises(ValueError, match="y has shape"):
            native.gemm(case.weight, x, poisoned(2, 31))
        with pytest.raises(ValueError, match="columns"):
            native.gemm(case.weight, x, poisoned(2, 32), col_begin=8)
        with pytest.raises(ValueError, match="columns"):
            native.gemm(case.weight, x, poisoned(2, 32), col_end=48)
        with pytest.raises(ValueError, match="bias"):
            native.gemm(case.weight, x, poisoned(2, 32), np.zeros(31, np.float32))
        with pytest.raises(ValueError, match="gemm_float is for"):
            native.gemm_float(case.weight, np.ones((2, 64), np.float32), poisoned(2, 32))
        with pytest.raises(ValueError, match="row 32"):
            native.dequantize_row(case.weight, 32, np.zeros(64, np.float32))

    def test_an_output_of_another_type_is_not_copied(self, rng: np.random.Generator) -> None:
        case = make_case("q4_0", 16, 32, rng)
        assert case is not None
        x = as_bytes(quantise(np.ones((2, 32), np.float32)))
        with pytest.raises(TypeError):
            native.gemm(case.weight, x, np.zeros((2, 16)))

    def test_weights_that_cannot_be_packed(self) -> None:
        ones = np.ones((2, 1), np.float32)
        with pytest.raises(ValueError, match="multiple of 32"):
            native.pack_quantised(np.zeros((2, 33), np.uint8), ones, bits=4, group=32)
        with pytest.raises(ValueError, match="above 15"):
            native.pack_quantised(np.full((2, 32), 16, np.uint8), ones, bits=4, group=32)
        with pytest.raises(ValueError, match="scales has shape"):
            native.pack_quantised(np.zeros((2, 64), np.uint8), ones, bits=4, group=32)
        with pytest.raises(ValueError, match="not both"):
            native.pack_quantised(np.zeros((2, 32), np.uint8), ones, ones, bits=4, group=32, zero=8)
        with pytest.raises(ValueError, match="fp16"):
            native.pack_super(
                np.zeros((1, 256), np.uint8),
                np.ones((1, 16), np.int8),
                np.full((1, 1), 1 / 3, np.float32),
                bits=8,
                group=16,
            )
        with pytest.raises(ValueError, match="even"):
            native.pack_bfloat16(np.zeros((1, 3), np.uint16))
        with pytest.raises(ValueError, match="empty"):
            native.pack_float(np.zeros((0, 3), np.float32))


def test_scales_take_fp16_only_if_exact() -> None:
    q = np.zeros((1, 64), np.uint8)
    exact = np.array([[65504.0, 2.0**-24]], np.float32)
    assert native.pack_quantised(q, exact, bits=4, group=32).format.scale_kind == "half"
    for value in (1 / 3, 65505.0, 2.0**-25, 1e30, 1.5 * 2.0**-24):
        scales = np.array([[1.0, value]], np.float32)
        weight = native.pack_quantised(q + 1, scales, bits=4, group=32)
        assert weight.format.scale_kind == "float"
        out = np.zeros(64, np.float32)
        native.dequantize_row(weight, 0, out)
        np.testing.assert_array_equal(out[32:], np.float32(value))


def test_every_fp16_survives() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float32)
    scales = np.resize(halves, (16, 4096))
    weight = native.pack_quantised(np.ones((16, 4096 * 32), np.uint8), scales, bits=4, group=32)
    assert weight.format.scale_kind == "half"
    out = np.zeros(4096 * 32, np.float32)
    for row in range(16):
        native.dequantize_row(weight, row, out)
        np.testing.assert_array_equal(out[::32], scales[row])
