"""What the token budget of a step costs and gives: 32 clients that ask again when answered.

In process, on the default model. All clients begin at once, each with a new prompt every time. The
budgets take turns, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import random
import statistics
import time

from benchmarks.report import save
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams

BUDGETS = (2048, 512, 256, 128)
CLIENTS = 32
ANSWERS_PER_CLIENT = 3
PROMPT_TOKENS = 128
ANSWER_TOKENS = 128
RUNS = 2


class Load:
    """One run of all clients; times in seconds."""

    def __init__(self, engine: EngineCore, answers_per_client: int = ANSWERS_PER_CLIENT) -> None:
        self._engine = engine
        self._rng = random.Random(time.perf_counter_ns())  # no prompt twice: nothing is cached
        self._num_left = CLIENTS * answers_per_client
        self._num_asked = 0
        self._asked: dict[str, float] = {}
        self.ttft: list[float] = []
        self.step_seconds: list[float] = []

    def run(self) -> dict[str, float]:
        num_tokens = self._num_left * ANSWER_TOKENS
        begin = time.perf_counter()
        for _ in range(CLIENTS):
            self._ask()
        while self._engine.has_work:
            self._step()
        return {
            "output_tokens_per_s": num_tokens / (time.perf_counter() - begin),
            "mean_ttft_ms": statistics.mean(self.ttft) * 1e3,
            "longest_step_ms": max(self.step_seconds) * 1e3,
        }

    def _ask(self) -> None:
        if self._num_left == 0:
            return
        self._num_left -= 1
        self._num_asked += 1
        name = str(self._num_asked)
        self._asked[name] = time.perf_counter()
        self._engine.add(
            AddRequest(
                request_id=name,
                prompt=pack_tokens([self._rng.randrange(32_000) for _ in range(PROMPT_TOKENS)]),
                sampling=SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True),
                arrival_time=time.monotonic(),
            )
        )

    def _step(self) -> None:
        begin = time.perf_counter()
        deltas = self._engine.step().deltas
        now = time.perf_counter()
        self.step_seconds.append(now - begin)
        for delta in deltas:
            if delta.request_id in self._asked:
                self.ttft.append(now - self._asked.pop(delta.request_id))
            if delta.finish_reason is not None:
                self._ask()


def main() -> None:
    config = EngineConfig.of(
        max_num_seqs=CLIENTS, max_num_batched_tokens=max(BUDGETS), speculative="none"
    )
    engine = EngineCore(create_runner(config), config.cache, config.scheduler)
    Load(engine, answers_per_client=1).run()
    runs: dict[int, list[dict[str, float]]] = {budget: [] for budget in BUDGETS}
    for _ in range(RUNS):
        for budget in BUDGETS:
            engine.scheduler.token_budget = budget
            runs[budget].append(Load(engine).run())
    for budget, figures in runs.items():
        speed, ttft, step = (
            statistics.mean(run[name] for run in figures)
            for name in ("output_tokens_per_s", "mean_ttft_ms", "longest_step_ms")
        )
        print(
            f"budget {budget:5}: {speed:6.0f} tokens/s, mean TTFT {ttft:4.0f} ms,"
            f" longest step {step:4.0f} ms"
        )
    save(
        "token_budget",
        runs,
        clients=CLIENTS,
        answers_per_client=ANSWERS_PER_CLIENT,
        prompt_tokens=PROMPT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
    )
