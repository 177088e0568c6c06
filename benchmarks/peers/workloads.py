"""What every engine is given, and how rates are read from the times of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

TOKEN_IDS = (256, 32_000)  # ordinary tokens of every vocabulary that is measured


@dataclass(frozen=True)
class Workload:
    """`sequences` random prompts that start together; greedy, EOS ignored."""

    name: str
    sequences: int
    input_len: int
    output_len: int
    larger: bool = False  # on the second model

    @property
    def measure(self) -> str:
        """The rate that this workload is for."""
        return "decode" if self.output_len > 1 else "prefill"

    def prompts(self, turn: int) -> list[list[int]]:
        """Token ids, the same for all engines and others in every turn: no prefix can be cached."""
        rng = np.random.default_rng([turn, crc32(self.name.encode())])
        ids: list[list[int]] = rng.integers(*TOKEN_IDS, (self.sequences, self.input_len)).tolist()
        return ids

    def shortened(self, output_len: int) -> Workload:
        return replace(self, output_len=min(self.output_len, output_len))


WORKLOADS = {
    load.name: load
    for load in (
        Workload("prefill_512", 1, 512, 1),
        Workload("decode_1", 1, 128, 128),
        Workload("decode_8", 8, 128, 128),
        Workload("decode_32", 32, 128, 128),
        Workload("larger_prefill_512", 1, 512, 1, larger=True),
        Workload("larger_decode_1", 1, 128, 128, larger=True),
        Workload("larger_decode_16", 16, 128, 128, larger=True),
    )
}


def rates(times: Sequence[Sequence[float]], input_len: int) -> dict[str, float]:
    """Tokens per second, from the seconds at which each sequence got each of its tokens.

    prefill   all prompt tokens, until the last sequence has its first token
    decode    what comes while every sequence has begun and none has ended; only for answers of
              more than one token
    output    all tokens of the answers over the whole time, prefill included
    """
    begun = max(each[0] for each in times)
    ended = min(each[-1] for each in times)
    together = sum(begun < moment <= ended for each in times for moment in each)
    figures = {
        "prefill": len(times) * input_len / begun,
        "output": sum(map(len, times)) / max(each[-1] for each in times),
    }
    if together:
        figures["decode"] = together / (ended - begun)
    return figures
