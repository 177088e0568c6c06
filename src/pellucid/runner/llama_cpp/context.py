"""A model and its memory in llama.cpp, through the C API that llama-cpp-python binds."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import ConfigError, ModelError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

MAX_UBATCH = 512  # rows that llama.cpp computes at once
# ggml.h's numbers of the types that a cell may have, and their bits per number.
CELL_TYPES = {"float32": (0, 32.0), "float16": (1, 16.0), "bfloat16": (30, 16.0), "int8": (8, 8.5)}
_ERROR_LEVEL = 4  # ggml.h's GGML_LOG_LEVEL_ERROR

_log = logging.getLogger(__name__)


def import_llama_cpp() -> Any:
    """The package, quiet.

    Raises:
        ConfigError: it is not installed, or its library cannot be loaded.
    """
    try:
        llama = importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--runner llama-cpp needs {error.name}: pip install 'pellucid[llamacpp]'",
            param="runner",
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(f"llama-cpp-python cannot be loaded: {error}", param="runner") from None
    llama.llama_log_set(_callback(llama), None)
    llama.llama_backend_init()
    return llama


@cache  # C holds on to it as long as the process lives
def _callback(llama: Any) -> Any:
    """llama.cpp's messages go to our log: its errors as such, the rest for who debugs."""

    def log(level: int, text: bytes, _: Any) -> None:
        message = text.decode("utf-8", "replace").strip()
        if message.strip("."):  # dots are its progress bar
            _log.log(logging.ERROR if level == _ERROR_LEVEL else logging.DEBUG, message)

    return llama.llama_log_callback(log)


class LlamaModel:
    """A GGUF file's weights, mapped.

    Raises:
        ModelError: llama.cpp cannot read the file.
    """

    def __init__(self, llama: Any, path: Path) -> None:
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.handle = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelError(f"llama.cpp cannot load {path}; --log-level debug says why")
        self.vocab_size: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.handle))
        self.hidden_size: int = llama.llama_model_n_embd(self.handle)
        self.num_bytes: int = llama.llama_model_size(self.handle)
        self.num_parameters: int = llama.llama_model_n_params(self.handle)


class LlamaContext:
    """Cells, and forward passes over them. Implements `CellMemory`.

    Args:
        llama: the package, or what behaves like it.
        num_cells: tokens whose keys and values fit.
        max_tokens: of one pass.
        num_seqs: sequences are numbered from 0 to num_seqs - 1.
        cell_type: number of a type in CELL_TYPES.

    Raises:
        ModelError: there is no memory for it.
    """

    def __init__(
        self,
        llama: Any,
        model: LlamaModel,
        *,
        num_cells: int,
        max_tokens: int,
        num_seqs: int,
        threads: int,
        cell_type: int,
    ) -> None:
        self._llama = llama
        self._model = model
        params = llama.llama_context_default_params()
        # The library ends the process if a pass may be shorter than there are sequences.
        num_cells, max_tokens = max(num_cells, num_seqs), max(max_tokens, num_seqs)
        params.n_ctx, params.n_seq_max = num_cells, num_seqs
        params.n_batch, params.n_ubatch = max_tokens, min(MAX_UBATCH, max_tokens)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = cell_type
        params.kv_unified = True  # sequences share cells only within one pool
        params.swa_full = True  # or a sliding window would forget what a prefix needs
        params.no_perf = True
        self._handle = llama.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelError(
                f"llama.cpp cannot make a context of {num_cells} tokens; --log-level debug says why"
            )
        self._memory = llama.llama_get_memory(self._handle)
        self._batch = llama.llama_batch_init(max_tokens, 0, 1)
        columns = ("token", "pos", "n_seq_id", "logits")
        self._token, self._pos, self._n_seq_id, self._wanted = (
            np.ctypeslib.as_array(getattr(self._batch, name), (max_tokens,)) for name in columns
        )

    def close(self) -> None:
        self._llama.llama_batch_free(self._batch)
        self._llama.llama_free(self._handle)
        self._llama.llama_model_free(self._model.handle)

    def seq_rm(self, seq: int, begin: int, end: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, seq, begin, end)

    def seq_cp(self, source: int, target: int, begin: int, end: int) -> None:
        self._llama.llama_memory_seq_cp(self._memory, source, target, begin, end)

    def logits(self, tokens: Ints, positions: Ints, seqs: Ints, wanted: Ints) -> Floats:
        """Compute tokens [T]; float32 [n, V] of the `wanted` of them, in ascending order.

        They lie in llama.cpp's memory and are good until the next pass.

        Raises:
            RuntimeError: the pass failed.
        """
        self._decode(tokens, positions, seqs, wanted)
        if not len(wanted):
            return np.empty((0, self._model.vocab_size), np.float32)
        found = self._llama.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(found, (len(wanted), self._model.vocab_size))

    def hidden(self, tokens: Ints, positions: Ints, seqs: Ints) -> Floats:
        """Compute tokens [T]; float32 [T, hidden], their states behind the final norm.

        They are good until the next pass. Raises RuntimeError: the pass failed.
        """
        self._llama.llama_set_embeddings(self._handle, True)
        try:
            self._decode(tokens, positions, seqs, np.arange(len(tokens)))
            found = self._llama.llama_get_embeddings(self._handle)
            return np.ctypeslib.as_array(found, (len(tokens), self._model.hidden_size))
        finally:
            self._llama.llama_set_embeddings(self._handle, False)

    def _decode(self, tokens: Ints, positions: Ints, seqs: Ints, wanted: Ints) -> None:
        count = len(tokens)
        self._token[:count], self._pos[:count] = tokens, positions
        self._n_seq_id[:count], self._wanted[:count] = 1, 0
        self._wanted[wanted] = 1
        seq_id = self._batch.seq_id
        for index, seq in enumerate(seqs.tolist()):
            seq_id[index][0] = seq
        self._batch.n_tokens = count
        status = self._llama.llama_decode(self._handle, self._batch)
        if status:
            raise RuntimeError(f"llama_decode failed with {status}")
