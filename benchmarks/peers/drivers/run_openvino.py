"""OpenVINO GenAI's continuous batching pipeline, which reads the GGUF itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import serve


class Driver:
    def load(
        self,
        model: str,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        cache_gb: int,
        threads: int,
    ) -> dict[str, Any]:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = max_num_seqs
        scheduler.max_num_batched_tokens = max_num_batched_tokens
        scheduler.cache_size = cache_gb
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        about = {
            "version": genai.__version__,
            "scheduler": " ".join(scheduler.to_string().split()),
            "threads": threads,
            "precision": "default of its CPU plugin",
        }
        return {"about": about}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        config = genai.GenerationConfig(max_new_tokens=output_len, ignore_eos=True, do_sample=False)
        tokens: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        begin = time.perf_counter()
        handles = [
            self.pipeline.add_request(row, ov.Tensor(np.array([prompt], np.int64)), config)
            for row, prompt in enumerate(prompts)
        ]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter() - begin
            for row, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        tokens[row] += output.generated_ids
                        times[row] += [now] * len(output.generated_ids)
        return {"tokens": tokens, "times": times}


if __name__ == "__main__":
    serve(Driver())
