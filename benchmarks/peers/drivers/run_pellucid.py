"""pellucid's engine, step by step, as `pellucid bench throughput` drives it."""

from __future__ import annotations

import time
from typing import Any

from protocol import serve

from pellucid import __version__
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, StepOutput, pack_tokens
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams


class Driver:
    def load(self, model: str, **settings: Any) -> dict[str, Any]:
        config = EngineConfig.of(model=model, device="cpu", speculative="none", **settings)
        self.core = EngineCore(create_runner(config), config.cache, config.scheduler)
        info = self.core.info
        about = {"version": __version__, "kernels": info.kernels, "dtype": info.dtype, **settings}
        return {"about": about}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
        tokens: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        begin = time.perf_counter()
        self._add(prompts, params)
        while self.core.has_work:
            output = self._step()
            now = time.perf_counter() - begin
            for delta in output.deltas:
                row = int(delta.request_id)
                tokens[row] += delta.token_ids
                times[row] += [now] * len(delta.token_ids)
        return {"tokens": tokens, "times": times}

    def score(self, windows: list[list[int]]) -> dict[str, Any]:
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        logprobs: list[list[float]] = [[] for _ in windows]
        self._add(windows, params)
        while self.core.has_work:
            for delta in self._step().deltas:
                entries = delta.prompt_logprobs or []
                logprobs[int(delta.request_id)] += [entry.logprob for entry in entries if entry]
        return {"logprobs": logprobs}

    def _add(self, prompts: list[list[int]], params: SamplingParams) -> None:
        for row, prompt in enumerate(prompts):
            self.core.add(
                AddRequest(
                    request_id=str(row),
                    prompt=pack_tokens(prompt),
                    sampling=params,
                    arrival_time=time.monotonic(),
                )
            )

    def _step(self) -> StepOutput:
        output = self.core.step()
        for delta in output.deltas:
            if delta.error:
                raise RuntimeError(delta.error)
        return output


if __name__ == "__main__":
    serve(Driver())
