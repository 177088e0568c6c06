"""Batches as rectangles: what a server computed before there were schedulers.

All rows of a batch are as wide as its longest, and all go on until its longest answer ends. What
is filled up is computed like the rest: it stands behind a row's text, where causal attention never
looks, so it costs time and changes no bit. The ops are the reference's.

    row 0   [ prompt .......... | answer ... | pad pad pad ]
    row 1   [ prompt ............... | answer ............ ]
              `- kept, if prefixes are -'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from pellucid.kernels.interface import AttentionInputs, allocate_kv
from pellucid.models.base import Model

Kept = Literal["nothing", "prefix", "all"]
BLOCK_SIZE = 16
PAD = 0
CPU = torch.device("cpu")


class PaddedBatches:
    """Greedy answers of batches of at most `seats` texts of at most `longest` tokens.

    Args:
        kept: keys and values that are not computed again at every step: none; those of what prompts
            begin with, learned from the first batch; or those of all text.

    Attributes:
        positions: rows times columns of all steps so far.
        wasted: how many of these were padding, or of rows whose answer had ended.
        seconds: spent in steps.
    """

    def __init__(
        self, model: Model, dtype: torch.dtype, seats: int, longest: int, kept: Kept
    ) -> None:
        self._model, self._kept = model, kept
        # Room for the longest text in every seat, and once more for the beginning that is shared.
        self._row_blocks = -(-longest // BLOCK_SIZE)
        config = model.config
        self._kv = allocate_kv(
            config.num_layers,
            (seats + 1) * self._row_blocks,
            BLOCK_SIZE,
            config.num_kv_heads,
            config.head_dim,
            dtype,
            CPU,
        )
        self._beginning: list[int] = []  # tokens whose keys and values are in the first blocks
        self.positions = self.wasted = 0
        self.seconds = 0.0

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[list[int]],
        lengths: Sequence[int],
        told: Callable[[int, int], None],
    ) -> None:
        """Answer all; `told(row, token)` as soon as each token that is wanted is there."""
        texts = [list(prompt) for prompt in prompts]
        shared = self._share(prompts) if self._kept != "nothing" else 0
        starts = [shared] * len(texts)
        for step in range(max(lengths)):
            begin = time.perf_counter()
            width = max(len(text) - start for text, start in zip(texts, starts, strict=True))
            tokens = self._step(texts, starts, width, shared)
            self.seconds += time.perf_counter() - begin
            self.positions += len(texts) * width
            for row, token in enumerate(tokens):
                wanted = step < lengths[row]
                self.wasted += width - (len(texts[row]) - starts[row] if wanted else 0)
                texts[row].append(token)
                if wanted:
                    told(row, token)
            if self._kept == "all":
                starts = [len(text) - 1 for text in texts]

    def _share(self, prompts: Sequence[list[int]]) -> int:
        """How many tokens, in whole blocks, of each prompt's beginning are kept already."""
        if not self._beginning:
            self._beginning = prompts[0][: _blocks_in_common(prompts)]
            if self._beginning:
                begin = time.perf_counter()
                self._step([self._beginning], [0], len(self._beginning), len(self._beginning))
                self.seconds += time.perf_counter() - begin
                self.positions += len(self._beginning)
        return _blocks_in_common([[*self._beginning, PAD], *prompts])

    def _step(
        self, texts: Sequence[list[int]], starts: Sequence[int], width: int, shared: int
    ) -> list[int]:
        """Compute `width` positions of each text from its start; the likeliest tokens behind."""
        columns = [
            (text[start : start + width] + [PAD] * width)[:width]
            for text, start in zip(texts, starts, strict=True)
        ]
        inputs = self._inputs(starts, width, shared)
        states = self._model.forward(torch.tensor(columns).flatten(), inputs, self._kv)
        last = [
            row * width + len(text) - 1 - start
            for row, (text, start) in enumerate(zip(texts, starts, strict=True))
        ]
        tokens: list[int] = self._model.logits(states[last]).argmax(-1).tolist()
        return tokens

    def _inputs(self, starts: Sequence[int], width: int, shared: int) -> AttentionInputs:
        rows = len(starts)
        positions = torch.tensor(starts)[:, None] + torch.arange(width)
        tables = self._tables(rows, shared)
        blocks = tables.long().gather(1, positions // BLOCK_SIZE)
        ends = [start + width for start in starts]
        return AttentionInputs(
            positions=positions.flatten(),
            slot_mapping=(blocks * BLOCK_SIZE + positions % BLOCK_SIZE).flatten(),
            block_tables=tables,
            query_start=torch.arange(rows + 1, dtype=torch.int32) * width,
            seq_lens=torch.tensor(ends, dtype=torch.int32),
            query_lens_list=[width] * rows,
            seq_lens_list=ends,
        )

    def _tables(self, rows: int, shared: int) -> Tensor:
        """[rows, blocks] int32: the first blocks are those of the shared beginning, for all."""
        own = torch.arange(1, rows + 1, dtype=torch.int32) * self._row_blocks
        tables = own[:, None] + torch.arange(self._row_blocks, dtype=torch.int32)
        count = shared // BLOCK_SIZE
        tables[:, :count] = torch.arange(count, dtype=torch.int32)
        return tables


def _blocks_in_common(texts: Sequence[list[int]]) -> int:
    """Tokens in whole blocks that all begin with; one at least is left of each to compute."""
    common = 0
    for tokens in zip(*(text[:-1] for text in texts), strict=False):
        if len(set(tokens)) > 1:
            break
        common += 1
    return common // BLOCK_SIZE * BLOCK_SIZE
