"""What behaves like `llama_cpp` where its runner uses it: cells, sequences, a batch.

The logits of a token are one-hot, at a digest of all tokens that its sequence sees up to there; so
one cell too many, too few or of somebody else shows in the next token. What the real library
refuses, this refuses: positions that do not follow, cells that are not there.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCAB = 97


def next_token(tokens: list[int]) -> int:
    digest = 7
    for token in tokens:
        digest = (digest * 1_000_003 + token + 1) % 2_147_483_647
    return 3 + digest % (VOCAB - 3)  # ids below 3 end an answer


class FakeLlama:
    """One model and one context. `num_seqs` is the library's limit of sequences."""

    __version__ = "0"

    def __init__(self, num_seqs: int = 256) -> None:
        self.num_seqs = num_seqs
        self.cells: list[tuple[int, int, set[int]]] = []  # position, token, sequences
        self.largest_pool = 0
        self.is_closed = False
        self._outputs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        """Whatever only prepares something is accepted."""
        if name.startswith("llama_"):
            return lambda *args: None
        raise AttributeError(name)

    def llama_max_parallel_sequences(self) -> int:
        return self.num_seqs

    def llama_model_default_params(self) -> SimpleNamespace:
        return SimpleNamespace()

    llama_context_default_params = llama_model_default_params

    def llama_model_load_from_file(self, path: bytes, params: SimpleNamespace) -> str:
        return "model"

    def llama_vocab_n_tokens(self, vocab: object) -> int:
        return VOCAB

    def llama_model_n_embd(self, model: object) -> int:
        return 8

    llama_model_size = llama_model_n_params = llama_model_n_embd

    def llama_init_from_model(self, model: object, params: SimpleNamespace) -> str:
        assert params.kv_unified
        self.num_cells, self.max_tokens = params.n_ctx, params.n_batch
        return "context"

    def llama_free(self, context: object) -> None:
        self.is_closed = True

    def llama_batch_init(self, size: int, embd: int, max_seqs: int) -> SimpleNamespace:
        columns = {
            name: (ctypes.c_int32 * size)() for name in ("token", "pos", "n_seq_id", "logits")
        }
        return SimpleNamespace(**columns, seq_id=[[0] for _ in range(size)], n_tokens=0)

    def llama_memory_seq_rm(self, memory: object, seq: int, begin: int, end: int) -> None:
        for position, _, seqs in self.cells:
            if begin <= position and (end < 0 or position < end):
                seqs.discard(seq)
        self.cells = [cell for cell in self.cells if cell[2]]

    def llama_memory_seq_cp(
        self, memory: object, source: int, target: int, begin: int, end: int
    ) -> None:
        for position, _, seqs in self.cells:
            if source in seqs and begin <= position < end:
                seqs.add(target)

    def llama_decode(self, context: object, batch: SimpleNamespace) -> int:
        assert 0 < batch.n_tokens <= self.max_tokens
        self._outputs = []
        for i in range(batch.n_tokens):
            position, (seq,) = batch.pos[i], batch.seq_id[i]
            assert batch.n_seq_id[i] == 1
            assert 0 <= seq < self.num_seqs
            seen = self._seen(seq)
            assert position == len(seen), "positions of a sequence follow each other"
            self.cells.append((position, batch.token[i], {seq}))
            if batch.logits[i]:
                self._outputs.append(next_token([*seen, batch.token[i]]))
        self.largest_pool = max(self.largest_pool, len(self.cells))
        return 0 if len(self.cells) <= self.num_cells else 1

    def llama_get_logits(self, context: object) -> np.ndarray:
        return np.eye(VOCAB, dtype=np.float32)[self._outputs]

    def _seen(self, seq: int) -> list[int]:
        seen = sorted((position, token) for position, token, seqs in self.cells if seq in seqs)
        assert [position for position, _ in seen] == list(range(len(seen)))
        return [token for _, token in seen]
