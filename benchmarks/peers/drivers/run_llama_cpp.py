"""llama.cpp through the batch API of llama.h: sequence ids, logits of the rows that need them.

The sampling is the argmax of those rows in numpy, which costs less than llama.cpp's own chain.
A context is made for each number of sequences, so that none pays for slots it does not use.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray
from protocol import serve

N_BATCH = 2048
FLASH = {"on": 1, "off": 0, "auto": -1}
Rows = NDArray[np.int32]  # [rows, 4]: token, position, sequence, wants logits


class Driver:
    def load(
        self, model: str, threads: int, flash_attn: str = "auto", kv_unified: bool = False
    ) -> dict[str, Any]:
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(model.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self.vocab_size = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.threads, self.flash_attn, self.kv_unified = threads, flash_attn, kv_unified
        self.contexts: dict[int, Any] = {}
        self.batch = ll.llama_batch_init(N_BATCH, 0, 1)
        about = {
            "version": ll.__version__,
            "system": ll.llama_print_system_info().decode(),
            "threads": threads,
            "flash_attn": flash_attn,
            "kv_unified": kv_unified,
            "kv_cache": "f16",
            "n_batch": N_BATCH,
            "n_ubatch": 512,
        }
        return {"about": about}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        context = self._context(len(prompts))
        tokens: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        begin = time.perf_counter()
        rows = np.array(
            [
                (token, position, sequence, position == len(prompt) - 1)
                for sequence, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ],
            np.int32,
        )
        while rows.size:
            following = []
            for start in range(0, len(rows), N_BATCH):
                chunk = rows[start : start + N_BATCH]
                best = self._decode(context, chunk).argmax(axis=1)
                now = time.perf_counter() - begin
                for token, (_, position, sequence, _) in zip(
                    best.tolist(), chunk[chunk[:, 3] == 1].tolist(), strict=True
                ):
                    tokens[sequence].append(token)
                    times[sequence].append(now)
                    if len(tokens[sequence]) < output_len:
                        following.append((token, position + 1, sequence, 1))
            rows = np.array(following, np.int32)
        ll.llama_memory_clear(ll.llama_get_memory(context), False)
        return {"tokens": tokens, "times": times}

    def score(self, windows: list[list[int]]) -> dict[str, Any]:
        context, answer = self._context(1), []
        for window in windows:
            rows = np.array([(token, i, 0, 1) for i, token in enumerate(window)], np.int32)
            logits = self._decode(context, rows)[:-1]
            top = logits.max(axis=1)
            norm = np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)) + top
            answer.append((logits[np.arange(len(logits)), window[1:]] - norm).tolist())
            ll.llama_memory_clear(ll.llama_get_memory(context), False)
        return {"logprobs": answer}

    def requantise(self, source: str, target: str, ftype: str) -> dict[str, Any]:
        """Write `source` again in the file type named as in llama.h, such as Q4_0."""
        params = ll.llama_model_quantize_default_params()
        params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{ftype}")
        params.allow_requantize = True
        if ll.llama_model_quantize(source.encode(), target.encode(), params):
            raise RuntimeError(f"llama.cpp cannot requantise {source} as {ftype}")
        return {}

    def _context(self, sequences: int) -> Any:
        if sequences not in self.contexts:
            params = ll.llama_context_default_params()
            params.n_ctx = 1024 * sequences
            params.n_batch, params.n_ubatch = N_BATCH, 512
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.threads
            params.flash_attn_type = FLASH[self.flash_attn]
            params.kv_unified = self.kv_unified
            params.no_perf = True
            self.contexts[sequences] = ll.llama_init_from_model(self.model, params)
        return self.contexts[sequences]

    def _decode(self, context: Any, rows: Rows) -> NDArray[np.float32]:
        """The logits, [rows that want them, vocabulary]; valid until the next call."""
        count = len(rows)
        self.batch.n_tokens = count
        for name, column in (("token", 0), ("pos", 1), ("logits", 3)):
            np.ctypeslib.as_array(getattr(self.batch, name), (N_BATCH,))[:count] = rows[:, column]
        for index, sequence in enumerate(rows[:, 2].tolist()):
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
        if status := ll.llama_decode(context, self.batch):
            raise RuntimeError(f"llama_decode failed with {status}")
        wanted = int(rows[:, 3].sum())
        if not wanted:
            return np.empty((0, self.vocab_size), np.float32)
        return np.ctypeslib.as_array(ll.llama_get_logits(context), (wanted, self.vocab_size))


if __name__ == "__main__":
    serve(Driver())
