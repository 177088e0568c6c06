"""Replayed steps: the bits of those that run op by op, whoever fills up the bucket."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model, random_weights
from pellucid.runner import graphs, torch_runner
from pellucid.runner.base import Chunk, NewRow, StepPlan
from pellucid.runner.graphs import GraphExecutor, context_buckets, row_buckets
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.runner.driver import Driver, Job
from tests.runner.tape import TapeRecorder

CPU = torch.device("cpu")
PLAIN = ModelConfig(
    architecture="llama",
    vocab_size=200,
    hidden_size=32,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_position=1024,
)
SLIDING = replace(
    PLAIN, architecture="gemma3", sliding_window=40, sliding_layers=(True, False), qk_norm=True,
    attention_softcap=20.0, post_norms=True,
)  # fmt: skip
EXPERTS = replace(PLAIN, architecture="mixtral", num_experts=4, experts_per_token=2, expert_size=32)
GPT2 = replace(PLAIN, architecture="gpt2", num_heads=2, mlp_bias=True, activation="gelu_tanh")


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "FIRST_CONTEXT", 64)


def make_runner(
    config: ModelConfig, recorder: TapeRecorder | None = None, **settings: object
) -> TorchRunner:
    dtype = getattr(torch, str(settings.setdefault("dtype", "float32")))
    model = build_model(config, random_weights(config, 1), ReferenceOps(), dtype, CPU)
    defaults = {"device": "cpu", "threads": 1, "num_kv_blocks": 120}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_runner.device_api, "graph_recorder", lambda device: recorder)
        return TorchRunner(
            EngineConfig.of(**defaults, cuda_graphs=recorder is not None, **settings), model=model
        )


def make_jobs() -> dict[str, Job]:
    """Answers of different lengths, so that buckets of many sizes come up."""
    jobs = {}
    for i, length in enumerate((1, 30, 62, 100, 250, 500, 7)):
        params = SamplingParams(temperature=0.7 * (i % 2), seed=i, logprobs=1)
        prompt = [(7 * k * k + i) % PLAIN.vocab_size for k in range(length)]
        jobs[f"r{i}"] = Job(prompt, params, num_tokens=3 + 2 * i)
    return jobs


def test_experts_run_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    """Who has which rows is known to the host only after it has waited for the device."""
    runner = make_runner(EXPERTS, TapeRecorder())
    assert not isinstance(runner._executor, GraphExecutor)
    assert "a model with experts cannot be recorded" in caplog.text
    runner.close()


@pytest.mark.parametrize("config", [PLAIN, SLIDING, GPT2], ids=lambda c: c.architecture)
@pytest.mark.parametrize("how", [{}, {"chunk": 200}, {"preempt_at": 2}], ids=str)
def test_answers_have_the_bits_of_those_without_graphs(
    config: ModelConfig, how: dict[str, int]
) -> None:
    recorder = TapeRecorder()
    runner = make_runner(config, recorder, max_num_seqs=8)
    found = Driver(runner).run(make_jobs(), **how)
    expected = Driver(make_runner(config, max_num_seqs=8)).run(make_jobs(), **how)
    for name, job in expected.items():
        assert found[name].tokens == job.tokens, name
        assert found[name].logprobs == job.logprobs, name
    assert isinstance(runner._executor, GraphExecutor)
    recorded = runner._executor.recorded
    assert len({rows for rows, _ in recorded}) > 2 or how
    assert len({context for _, context in recorded}) > 1
    assert recorder.num_recorded == len(recorded), "each bucket once, when it comes up"
    assert recorder.num_replayed > recorder.num_recorded


@pytest.mark.parametrize(
    "types", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"kv_cache_dtype": "int8"}], ids=str
)
def test_so_they_have_in_other_types(types: dict[str, str]) -> None:
    found, expected = (
        Driver(make_runner(PLAIN, recorder, max_num_seqs=8, **types)).run(make_jobs())
        for recorder in (TapeRecorder(), None)
    )
    for name, job in expected.items():
        assert (found[name].tokens, found[name].logprobs) == (job.tokens, job.logprobs), name


def test_rows_that_fill_up_write_nowhere_but_to_the_scratch_block() -> None:
    runner = make_runner(PLAIN, TapeRecorder(), max_num_seqs=8)
    job = Job([3, 1, 4], SamplingParams(temperature=0.0), num_tokens=6)
    others = {f"r{i}": Job([i, 5], SamplingParams(temperature=0.0), 6) for i in range(4)}
    Driver(runner).run({"a": job, **others})  # five rows in a bucket of eight
    assert (8, 64) in runner._executor.recorded
    used = len(runner._kv[0].k) - 1
    assert used == runner.kv_capacity().num_blocks
    twin = make_runner(PLAIN, max_num_seqs=8)
    Driver(twin).run({"a": replace(job, tokens=[], blocks=[], computed=0), **{
        name: Job(o.prompt, o.params, 6) for name, o in others.items()
    }})  # fmt: skip
    for with_graphs, without in zip(runner._kv, twin._kv, strict=True):
        assert torch.equal(with_graphs.k[:used], without.k)
        assert torch.equal(with_graphs.v[:used], without.v)
        assert with_graphs.k[used, 0].any()
        assert not with_graphs.k[used, 1:].any()


def test_a_row_that_left_is_not_computed_again() -> None:
    """Its blocks may be another's by then."""
    runner = make_runner(PLAIN, TapeRecorder(), max_num_seqs=8)
    names = [f"r{i}" for i in range(7)]
    greedy = SamplingParams(temperature=0.0)
    rows = [NewRow(name, [1, 2], 2, greedy) for name in names]
    chunks = [Chunk(name, 0, 2, True, [i]) for i, name in enumerate(names)]
    runner.execute(StepPlan(0, new_rows=rows, chunks=chunks)).result()
    runner.execute(StepPlan(1, chunks=[Chunk(name, 2, 1, True, []) for name in names])).result()
    for layer in runner._kv:
        layer.k[5:7], layer.v[5:7] = torch.nan, torch.nan
    rest = [Chunk(name, 3, 1, True, []) for name in names[:5]]
    runner.execute(StepPlan(2, dropped=names[5:], chunks=rest)).result()
    assert runner._executor.recorded.count((8, 64)) == 1
    for layer in runner._kv:
        assert layer.k[5:7].isnan().all()
        assert layer.v[5:7].isnan().all()


def test_steps_with_prompts_run_op_by_op() -> None:
    recorder = TapeRecorder()
    runner = make_runner(PLAIN, recorder, max_num_seqs=8)
    before = recorder.num_recorded, recorder.num_replayed  # by the warm-up
    Driver(runner).run({"a": Job([1, 2, 3, 4], SamplingParams(temperature=0.0), 1)}, chunk=2)
    assert (recorder.num_recorded, recorder.num_replayed) == before


def test_buckets_reach_to_max_num_seqs() -> None:
    runner = make_runner(PLAIN, TapeRecorder(), max_num_seqs=40)
    greedy = SamplingParams(temperature=0.0)
    Driver(runner).run({f"r{i}": Job([1, 2, i], greedy, num_tokens=3) for i in range(40)})
    assert (40, 64) in runner._executor.recorded


class NoMemory(TapeRecorder):
    """Has none for more than two rows; the error is masked as a capture that cannot end does."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(function)
        if function.__self__.num_rows <= 2:  # type: ignore[attr-defined]
            return replay
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_steps_that_find_no_memory_to_be_recorded_run_op_by_op(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = NoMemory()
    found = Driver(make_runner(PLAIN, recorder, max_num_seqs=8)).run(make_jobs())
    expected = Driver(make_runner(PLAIN, max_num_seqs=8)).run(make_jobs())
    for name, job in expected.items():
        assert (found[name].tokens, found[name].logprobs) == (job.tokens, job.logprobs), name
    told = [record.getMessage() for record in caplog.records if "no memory" in record.getMessage()]
    assert len(told) == len(set(told)) > 0, "each bucket once"
    assert recorder.num_replayed > 0


def test_other_errors_while_recording_are_not_hidden() -> None:
    class Broken(TapeRecorder):
        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        make_runner(PLAIN, Broken())


def test_recordings_end_with_the_runner_and_not_with_the_garbage_collector() -> None:
    runner = make_runner(PLAIN, TapeRecorder(), max_num_seqs=2)
    Driver(runner).run({"a": Job([1, 2], SamplingParams(temperature=0.0), num_tokens=3)})
    (recording, _), *_ = runner._executor._recordings.values()
    ended = weakref.ref(recording)
    del recording, _
    gc.disable()
    try:
        runner.close()
        assert ended() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("most", [1, 2, 3, 8, 30, 64, 100, 256])
def test_a_bucket_is_at_most_half_padding(most: int) -> None:
    buckets = row_buckets(most)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == most
    for rows in range(1, most + 1):
        bucket = next(b for b in buckets if b >= rows)
        assert bucket < 2 * rows or bucket == rows


def test_contexts_double_up_to_the_longest() -> None:
    assert context_buckets(50) == [50]
    assert context_buckets(64) == [64]
    assert context_buckets(300) == [64, 128, 256, 300]


def test_a_recording_may_not_read_the_device() -> None:
    """The recorder of these tests, which the others rely on."""
    x = torch.zeros(2)

    def reads() -> None:
        x.add_(x[0].item())

    with pytest.raises(RuntimeError, match="asks the device"):
        TapeRecorder().record(reads)
    baked = [1.0]

    def fills() -> None:
        x.copy_(torch.ones(2) * baked[0])

    replay = TapeRecorder().record(fills)
    baked[0] = 5.0
    x.zero_()
    replay()
    assert x.tolist() == [1.0, 1.0]
