"""vLLM's engine in this process, step by step, without detokenising."""

from __future__ import annotations

import os
import time
from typing import Any

from protocol import serve
from vllm import LLM, SamplingParams, TokensPrompt, __version__
from vllm.sampling_params import RequestOutputKind


class Driver:
    def load(self, model: str, **settings: Any) -> dict[str, Any]:
        self.llm = LLM(model=model, **settings)
        self.count = 0
        environ = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("VLLM_CPU_", "VLLM_ENABLE_"))
        }
        about = {
            "version": __version__,
            **settings,
            "environment": environ,
            "preloaded": [part.rpartition("/")[2] for part in _preloaded()],
        }
        return {"about": about}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        params = SamplingParams(
            max_tokens=output_len,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        tokens: dict[str, list[int]] = {str(self.count + row): [] for row in range(len(prompts))}
        times: dict[str, list[float]] = {name: [] for name in tokens}
        self.count += len(prompts)
        engine = self.llm.llm_engine
        begin = time.perf_counter()
        for name, prompt in zip(tokens, prompts, strict=True):
            engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - begin
            for output in outputs:
                fresh = output.outputs[0].token_ids
                tokens[output.request_id] += fresh
                times[output.request_id] += [now] * len(fresh)
        return {"tokens": list(tokens.values()), "times": list(times.values())}

    def score(self, windows: list[list[int]]) -> dict[str, Any]:
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=window) for window in windows]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return {
            "logprobs": [
                [
                    entries[token].logprob
                    for token, entries in zip(
                        window[1:], (output.prompt_logprobs or [])[1:], strict=True
                    )
                ]
                for window, output in zip(windows, outputs, strict=True)
            ]
        }


def _preloaded() -> list[str]:
    return [part for part in os.environ.get("LD_PRELOAD", "").split(":") if part]


if __name__ == "__main__":
    serve(Driver())
