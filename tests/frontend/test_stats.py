"""What listeners are told of steps and of ends."""

from __future__ import annotations

from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.sampling_params import SamplingParams
from tests.frontend.running import collect, with_fake


class Listener:
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.finished: list[RequestReport] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_finish(self, report: RequestReport) -> None:
        self.finished.append(report)


def test_listeners_hear_of_every_step_and_every_end() -> None:
    async def body(llm: AsyncLLM) -> None:
        listener = Listener()
        llm.listeners.append(listener)
        params = SamplingParams(n=2, max_tokens=10)
        await collect(llm, [70, 71], params)
        assert sum(len(s.times_to_first_token) for s in listener.steps) == 2
        assert sum(len(s.inter_token_latencies) for s in listener.steps) == 18
        assert sum(s.stats.num_generated_tokens for s in listener.steps) == 20
        assert [(r.finish_reason, r.num_output_tokens) for r in listener.finished] == [
            ("length", 10)
        ] * 2
        generation = await llm.submit([70, 71], params)
        await generation.aclose()
        assert [r.finish_reason for r in listener.finished[2:]] == ["abort"] * 2

    with_fake(body)


def test_a_failing_listener_harms_nobody() -> None:
    class Broken(Listener):
        def on_step(self, report: StepReport) -> None:
            raise RuntimeError("broken")

    async def body(llm: AsyncLLM) -> None:
        good = Listener()
        llm.listeners.extend([Broken(), good])
        deltas = await collect(llm, [70], SamplingParams(max_tokens=3))
        assert deltas[-1].finish_reason == "length"
        assert good.steps

    with_fake(body)
