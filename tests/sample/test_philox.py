"""Known answers, an independent implementation, and the promise of statelessness."""

from __future__ import annotations

import numpy as np
import pytest

from pellucid.sample.philox import philox4x32, uniform

# From the known-answer file of Random123, the authors' own implementation.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(values: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.array([v], np.uint64) for v in values)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    assert tuple(int(w[0]) for w in philox4x32(words(counter), words(key))) == expected


def philox_in_plain_integers(seed: int, position: int, draw: int) -> float:
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    c = [position & 0xFFFFFFFF, position >> 32, draw, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ key[0], b % 2**32, (a >> 32) ^ c[3] ^ key[1], a % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return ((c[0] << 20) + (c[1] >> 12)) / 2**52


def test_uniform_equals_plain_integer_arithmetic_at_the_edges_of_int64():
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 123456789012345]
    positions = [0, 1, 2**31, 5, 4096, 2**32 + 3, 17]
    for draw in (0, 3):
        numbers = uniform(np.array(seeds), np.array(positions), draw)
        expected = [
            philox_in_plain_integers(s, p, draw) for s, p in zip(seeds, positions, strict=True)
        ]
        assert numbers.tolist() == expected


def test_a_number_does_not_depend_on_its_neighbours():
    seeds, positions = np.arange(100) * 7919, np.arange(100)[::-1].copy()
    together = uniform(seeds, positions)
    alone = [uniform(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(100)]
    assert together.tolist() == alone


def test_numbers_are_uniform_over_positions_and_over_seeds():
    many, same = np.arange(100_000), np.full(100_000, 42)
    for numbers in (uniform(same, many), uniform(many, same)):
        assert numbers.min() >= 0.0
        assert numbers.max() < 1.0
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        chi_square = ((counts - 1000.0) ** 2 / 1000.0).sum()
        assert chi_square < 160  # 99 degrees of freedom: exceeded once in 10,000 choices of seed
