"""The runner by hand-made plans: the answer does not depend on how it was computed."""

from __future__ import annotations

import random

import psutil
import pytest
import torch

from pellucid.config import EngineConfig
from pellucid.errors import ConfigError, ModelError
from pellucid.kernels import native
from pellucid.kernels.dispatch import select_ops
from pellucid.kernels.interface import AttentionInputs, allocate_kv
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.base import Model
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model, random_weights
from pellucid.runner import torch_runner
from pellucid.runner.base import Chunk, NewRow, StepPlan
from pellucid.runner.executor import Forward
from pellucid.runner.steps import warm_up
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import NOTHING_LEFT, SamplingParams
from tests.device import DEVICE, INVARIANT_KERNELS, float_weights_too, on_device
from tests.runner.driver import Driver, Job

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=1000,
    hidden_size=48,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_position=512,
    eos_token_ids=(0, 5),
)


@pytest.fixture(scope="module", params=INVARIANT_KERNELS)
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "native" and native.obstacle(DEVICE) is not None:
        pytest.skip("the C++ part is not built")
    with float_weights_too():
        return build(select_ops(request.param, DEVICE))


def build(ops: ReferenceOps) -> Model:
    return build_model(CONFIG, random_weights(CONFIG, 1), ops, torch.float32, DEVICE)


def make_runner(model: Model, **settings: object) -> TorchRunner:
    defaults = {
        "dtype": "float32",
        "device": str(DEVICE),
        "threads": 2,
        "num_kv_blocks": 200,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
    }
    return TorchRunner(EngineConfig.of(**(defaults | settings)), model=model)


@pytest.fixture
def runner(model) -> TorchRunner:
    return make_runner(model)


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(1000 * seed + length)
    return [rng.randrange(CONFIG.vocab_size) for _ in range(length)]


def make_jobs() -> dict[str, Job]:
    """Requests of many kinds, with prompts from one token to many blocks."""
    bad_words = [[i, j] for i in range(0, 1000, 3) for j in range(0, 1000, 250)]
    kinds = [
        (1, {"temperature": 0.0}),
        (15, {"temperature": 1.0, "seed": 7}),
        (16, {"temperature": 1.0, "top_p": 0.8, "seed": -3}),
        (17, {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4}),
        (70, {"temperature": 1.3, "top_k": 20, "min_p": 0.02, "seed": 8, "presence_penalty": 1.5}),
        (100, {"temperature": 0.0, "min_tokens": 4, "logit_bias": {3: 4.0, 5: 100.0}}),
        (300, {"temperature": 2.0, "seed": 1, "bad_words_token_ids": bad_words}),
    ]
    return {
        f"r{length}": Job(
            prompt(length), SamplingParams(logprobs=4, prompt_logprobs=2, **params), num_tokens=12
        )
        for length, params in kinds
    }


@pytest.fixture(scope="module")
def alone(model) -> dict[str, Job]:
    jobs = make_jobs()
    for name, job in jobs.items():
        Driver(make_runner(model)).run({name: job})
    return jobs


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunk": 7},
        {"chunk": 64},
        {"preempt_at": 5},
        {"chunk": 7, "preempt_at": 1},
        {"chunk": 33, "preempt_at": 11},
    ],
    ids=str,
)
def test_batched_chunked_and_resumed_equal_alone_bit_for_bit(runner, alone, how):
    jobs = Driver(runner, seed=len(str(how))).run(make_jobs(), **how)
    for name, job in jobs.items():
        assert job.tokens == alone[name].tokens, name
        assert job.logprobs == alone[name].logprobs, name
        assert job.prompt_logprobs == alone[name].prompt_logprobs, name


def test_the_requests_of_that_test_differ(alone):
    answers = [tuple(job.tokens) for job in alone.values()]
    assert len(set(answers)) == len(answers)
    assert all(len(answer) == 12 for answer in answers)


def test_rows_and_blocks_are_reused_without_a_trace(runner, alone):
    driver = Driver(runner)
    for _ in range(3):
        jobs = driver.run(make_jobs(), chunk=50)
        assert {n: j.tokens for n, j in jobs.items()} == {n: j.tokens for n, j in alone.items()}


def test_a_shared_prefix_equals_a_computed_one(runner, alone):
    """The second request starts behind two blocks that the first one computed."""
    job = alone["r70"]
    first = NewRow("first", job.prompt, 70, job.params)
    second = NewRow("second", job.prompt, 70, job.params)
    runner.execute(
        StepPlan(0, new_rows=[first], chunks=[Chunk("first", 0, 70, True, [9, 8, 7, 6, 5])])
    ).result()
    result = runner.execute(
        StepPlan(1, new_rows=[second], chunks=[Chunk("second", 32, 38, True, [9, 8, 1, 2, 3])])
    ).result()
    assert result.token_ids == [job.tokens[:1]]
    assert result.logprobs == [job.logprobs[:1]]
    assert result.prompt_logprobs == [job.prompt_logprobs[32:]]


def test_prompt_logprobs_end_with_the_prompt(runner, alone):
    """Also when a preempted request computes its own answer again."""
    job = alone["r70"]
    row = NewRow("a", job.known[:78], 70, job.params)
    chunks = [Chunk("a", 0, 75, False, [1, 2, 3, 4, 5]), Chunk("a", 75, 3, True, [])]
    first = runner.execute(StepPlan(0, new_rows=[row], chunks=chunks[:1])).result()
    second = runner.execute(StepPlan(1, chunks=chunks[1:])).result()
    assert first.prompt_logprobs == [job.prompt_logprobs]
    assert second.prompt_logprobs == [[]]
    assert second.token_ids == [job.tokens[8:9]]


@on_device()
def direct_logprobs(tokens: list[int]) -> torch.Tensor:
    """log_softmax at every position, from one pass of the reference over a cache of its own."""
    model = build(ReferenceOps())
    count = len(tokens)
    inputs = AttentionInputs(
        positions=torch.arange(count),
        slot_mapping=torch.arange(count),
        block_tables=torch.arange(-(-count // 16), dtype=torch.int32)[None],
        query_start=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([count], dtype=torch.int32),
        query_lens_list=[count],
        seq_lens_list=[count],
    )
    kv = allocate_kv(
        CONFIG.num_layers, -(-count // 16), 16, CONFIG.num_kv_heads, 16, torch.float32, DEVICE
    )
    hidden = model.forward(torch.tensor(tokens), inputs, kv)
    return torch.log_softmax(model.logits(hidden), dim=-1)


@pytest.mark.parametrize("name", ["r1", "r17", "r300"])
def test_logprobs_equal_a_direct_computation(alone, name):
    job = alone[name]
    table = direct_logprobs(job.known)
    entries = job.prompt_logprobs + job.logprobs
    assert len(job.prompt_logprobs) == len(job.prompt) - 1
    assert [e.token_id for e in entries] == job.known[1:]
    for position, entry in enumerate(entries):
        row = table[position]
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-5)
        assert entry.rank == 1 + (row > row[entry.token_id]).sum()
        wanted = 2 if position < len(job.prompt) - 1 else 4
        assert entry.top_ids == row.topk(wanted).indices.tolist()
        assert entry.top_logprobs == pytest.approx(row.topk(wanted).values.tolist(), abs=1e-5)


def test_parameters_reach_the_sampler(runner):
    table = direct_logprobs(prompt(20))
    best = table[-1].topk(3).indices.tolist()
    cases = {
        "greedy": ({"temperature": 0.0}, best[0]),
        "banned": ({"temperature": 0.0, "bad_words_token_ids": [[best[0]]]}, best[1]),
        "allowed": ({"allowed_token_ids": [best[2]]}, best[2]),
        "biased": ({"temperature": 0.0, "logit_bias": {17: 100.0}}, 17),
        "eos": ({"temperature": 0.0, "logit_bias": {5: 100.0}}, 5),
        "not yet eos": ({"temperature": 0.0, "min_tokens": 1, "logit_bias": {5: 100.0}}, best[0]),
        "eos ignored": (
            {"temperature": 0.0, "min_tokens": 1, "logit_bias": {5: 100.0}, "ignore_eos": True},
            5,
        ),
        "not yet stop": (
            {"temperature": 0.0, "min_tokens": 1, "stop_token_ids": [17], "logit_bias": {17: 99.0}},
            best[0],
        ),
    }
    jobs = {
        name: Job(prompt(20), SamplingParams(**params), num_tokens=1)
        for name, (params, _) in cases.items()
    }
    Driver(runner).run(jobs)
    assert {n: j.tokens for n, j in jobs.items()} == {n: [t] for n, (_, t) in cases.items()}


def test_logprobs_of_the_whole_vocabulary(runner):
    job = Job(prompt(5), SamplingParams(logprobs=-1), num_tokens=1)
    Driver(runner).run({"a": job})
    (entry,) = job.logprobs
    assert sorted(entry.top_ids) == list(range(1000))
    assert sum(torch.tensor(entry.top_logprobs).exp()) == pytest.approx(1.0, abs=1e-4)


class SecondOfThreeBreaks:
    """A forward pass whose second row of three is NaN."""

    def __init__(self, inner: Forward) -> None:
        self._inner = inner

    def logits(self, begin: int, end: int) -> torch.Tensor:
        out = self._inner.logits(begin, end)
        if len(out) == 3:
            out[1] = torch.nan
        return out


def test_broken_logits_end_their_request_alone(runner, alone, monkeypatch):
    """A row with NaN logits, and one whose constraints leave nothing, are told; others go on."""
    launch = runner._executor.launch
    monkeypatch.setattr(
        runner._executor, "launch", lambda *args: SecondOfThreeBreaks(launch(*args))
    )
    jobs = {name: make_jobs()["r15"] for name in ("good", "broken", "also good")}
    Driver(runner).run(jobs)
    assert jobs["good"].tokens == jobs["also good"].tokens == alone["r15"].tokens
    assert "not finite" in jobs["broken"].error
    impossible = SamplingParams(allowed_token_ids=[5], bad_words_token_ids=[[5]])
    job = Job(prompt(3), impossible, num_tokens=1)
    Driver(runner).run({"a": job})
    assert job.error == NOTHING_LEFT


def test_a_warm_up_that_compiles_meets_prompts_and_samplers_of_all_kinds(model, monkeypatch):
    runner, plans = make_runner(model), []
    execute = runner.execute
    monkeypatch.setattr(runner, "execute", lambda plan: plans.append(plan) or execute(plan))
    warm_up(runner, compiles=True)
    assert max(plan.num_tokens for plan in plans) > 256
    kinds = [row.sampling for plan in plans for row in plan.new_rows]
    assert {(k.greedy, k.top_k > 0, k.top_p < 1) for k in kinds} >= {
        (True, False, False),
        (False, False, False),
        (False, True, True),
    }
    assert any(k.logprobs and k.presence_penalty and k.logit_bias for k in kinds)
    assert len(runner._steps.batch) == 0


def test_a_model_that_is_broken_from_the_start_is_refused(model):
    broken = build(type(model.ops)())
    broken.final_norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite in float32"):
        make_runner(broken)


def test_a_step_may_drop_and_replace_every_row(model):
    runner = make_runner(model, max_num_seqs=2)
    params = SamplingParams(temperature=0.0)
    for step in range(5):
        names = [f"{step}-{i}" for i in range(2)]
        plan = StepPlan(
            step=step,
            dropped=[f"{step - 1}-{i}" for i in range(2)],
            new_rows=[NewRow(name, prompt(9), 9, params) for name in names],
            chunks=[Chunk(name, 0, 9, True, [i]) for i, name in enumerate(names)],
        )
        first, second = runner.execute(plan).result().token_ids
        assert first == second


def test_info_describes_model_and_memory(model):
    info = make_runner(model, served_model_name="mine", num_kv_blocks=20).info()
    assert (info.model, info.architecture, info.dtype) == ("mine", "llama", "float32")
    assert (info.vocab_size, info.eos_token_ids) == (1000, [0, 5])
    assert (info.num_kv_blocks, info.block_size, info.max_model_len) == (20, 16, 320)
    assert info.kv_dtype == "float32"
    assert info.kv_block_bytes == 2 * 2 * 16 * 2 * 16 * 4
    per_layer = 48 * (96 + 32 + 32) + 96 * 48 + 3 * 48 * 96 + 2 * 48
    assert info.num_parameters == 2 * 1000 * 48 + 2 * per_layer + 48
    # Native kernels count matrices alone, padded to strips of 16 rows.
    assert info.weight_bytes == pytest.approx(4 * info.num_parameters, rel=0.01)


def test_memory_of_the_process_is_told_without_the_pool(model, monkeypatch):
    class Touched:
        num_touched = 100 << 20

    monkeypatch.setattr(torch_runner, "FirstTouch", lambda pool: Touched())
    info = make_runner(model).info()
    resident = psutil.Process().memory_info().rss
    assert info.process_bytes == pytest.approx(resident - Touched.num_touched, rel=0.05)


def test_a_runner_of_one_small_block_still_starts(model):
    runner = make_runner(model, num_kv_blocks=1, block_size=1, max_num_seqs=1)
    assert runner.info().max_model_len == 1


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"max_model_len": 513}, "max_model_len"),
        ({"max_model_len": 400, "num_kv_blocks": 24}, "max_model_len"),
        ({"device": "cuda:63"}, "device"),
    ],
)
def test_settings_that_do_not_fit_are_named(model, settings, param):
    with pytest.raises(ConfigError) as caught:
        make_runner(model, **settings)
    assert caught.value.param == param


def test_compiled_ops_give_the_same_tokens(monkeypatch):
    """By the compiler's own front end; what it makes of the ops is its affair."""
    compiled = []

    def compile_op(op, dynamic):
        compiled.append(op.__name__)
        return torch_compile(op, backend="eager", dynamic=dynamic)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_op)
    answers = []
    for setting in (False, True):
        config = EngineConfig.of(
            device="cpu", kernels="reference", num_kv_blocks=20, max_model_len=64,
            dtype="float32", threads=1, torch_compile=setting,
        )  # fmt: skip
        runner = TorchRunner(config, shape="tiny")
        jobs = {
            name: Job(list(name.encode()), SamplingParams(temperature=0.0), num_tokens=4)
            for name in ("a", "two")
        }
        Driver(runner).run(jobs)
        answers.append([job.tokens for job in jobs.values()])
    assert answers[0] == answers[1]
    assert {"rms_norm", "silu_mul", "rope"} <= set(compiled)


@pytest.mark.skipif(native.obstacle(CPU) is not None, reason="the C++ part is not built")
def test_native_ops_are_not_compiled_twice():
    config = EngineConfig.of(device="cpu", torch_compile=True)
    with pytest.raises(ConfigError) as caught:
        TorchRunner(config, shape="tiny")
    assert caught.value.param == "torch_compile"


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_default_model_knows_the_capital_of_france(smollm2_path, dtype):
    from pellucid.frontend.tokenizer import load_tokenizer
    from pellucid.load.files import ModelFiles

    tokenizer = load_tokenizer(ModelFiles("gguf", smollm2_path, "smollm2"))
    runner = TorchRunner(
        EngineConfig.of(
            model=str(smollm2_path), dtype=dtype, threads=2, num_kv_blocks=64, device="cpu"
        )
    )
    assert runner.info().max_model_len == 1024
    job = Job(
        tokenizer.encode("The capital of France is"), SamplingParams(temperature=0.0), num_tokens=8
    )
    Driver(runner).run({"a": job})
    assert "Paris" in tokenizer.decode(job.tokens)
    runner.close()


@pytest.mark.model
@pytest.mark.skipif(native.obstacle(CPU) is not None, reason="the C++ part is not built")
def test_native_kernels_are_near_the_reference_on_the_default_model(smollm2_path):
    """Not equal: activations are rounded to 8 bits, which costs some hundredths of a logit."""
    text = [(7919 * k * k + 31 * k) % 40_000 + 100 for k in range(60)]
    scored = {}
    for kernels in ("reference", "native"):
        runner = TorchRunner(
            EngineConfig.of(
                model=str(smollm2_path), kernels=kernels, dtype="float32", threads=2,
                num_kv_blocks=64, device="cpu",
            )
        )  # fmt: skip
        job = Job(text, SamplingParams(temperature=0.0, prompt_logprobs=0), num_tokens=1)
        Driver(runner).run({"a": job})
        scored[kernels] = [entry.logprob for entry in job.prompt_logprobs]
        runner.close()
    difference = torch.tensor(scored["native"]) - torch.tensor(scored["reference"])
    assert difference.abs().mean() < 0.2
    assert abs(difference.mean()) < 0.05
