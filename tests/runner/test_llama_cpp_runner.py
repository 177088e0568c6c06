"""llama.cpp under this engine: its own answers, in any company.

Needs llama-cpp-python (docs/runners.md says how to have it) and the default model. What its kernels
compute for a row depends on the rows beside it, in the last digits and, where a rounding to 8 bits
falls the other way, before them: in company, answers agree nearly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.frontend.tokenizer import load_tokenizer
from pellucid.load.files import ModelFiles
from pellucid.messages import AddRequest, TokenDelta, pack_tokens
from pellucid.runner.base import StepPlan
from pellucid.runner.llama_cpp.runner import LlamaCppRunner
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from tests.runner.driver import Driver, Job

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None,
        reason="llama-cpp-python is not installed: pip install -e '.[llamacpp]'",
    ),
]

TEXTS = (
    "The capital of France is",
    "Two plus two is",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three primary colours are red,",
    "Once upon a time there was a small town " * 6 + "and",
)
ANSWER = 8
NEAR = 0.5  # between log probabilities of batches of different shapes; 0.03 is usual


@pytest.fixture(scope="module")
def config(smollm2_path: Path) -> EngineConfig:
    return EngineConfig.of(
        model=str(smollm2_path), runner="llama-cpp", threads=2, num_kv_blocks=96, max_num_seqs=8
    )


@pytest.fixture(scope="module")
def runner(config) -> Iterator[LlamaCppRunner]:
    runner = LlamaCppRunner(config)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def prompts(smollm2_path: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(ModelFiles("gguf", smollm2_path, "smollm2"))
    return [tokenizer.encode(text) for text in TEXTS]


class Own:
    """llama-cpp-python's own class: one sequence, no scheduler, the argmax of its scores."""

    def __init__(self, path: Path) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            str(path), n_ctx=256, n_threads=2, logits_all=True, flash_attn=True, verbose=False
        )

    def greedy(self, prompt: list[int]) -> list[int]:
        self.llama.reset()
        self.llama.eval(prompt)
        for _ in range(ANSWER):
            self.llama.eval([int(self.llama.scores[self.llama.n_tokens - 1].argmax())])
        return self.llama.input_ids[len(prompt) : self.llama.n_tokens].tolist()

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """[len(tokens), V], those of the token behind each."""
        self.llama.reset()
        self.llama.eval(tokens)
        scores = self.llama.scores[: len(tokens)].astype(np.float64)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def check(self, prompt: list[int], answer: list[int]) -> np.ndarray:
        """Each token of the answer is the likeliest, or as good as; its logprobs, and the prompt's.

        One that is not quite the likeliest goes on differently, so the answer is scored as it is.
        """
        known = prompt + answer
        table = self.logprobs(known)
        assert len(answer) == ANSWER
        of_known = table[np.arange(len(known) - 1), known[1:]]
        gaps = table.max(axis=1)[:-1] - of_known
        assert gaps[len(prompt) - 1 :].max() < NEAR
        return of_known


@pytest.fixture(scope="module")
def own(smollm2_path: Path) -> Iterator[Own]:
    own = Own(smollm2_path)
    yield own
    own.llama.close()


def drive(runner: LlamaCppRunner, jobs: dict[str, Job], **how: int) -> dict[str, Job]:
    """Run jobs to their end, and leave nothing behind."""
    driver = Driver(runner)
    driver.run(jobs, **how)
    runner.execute(StepPlan(step=0, dropped=driver.dropped)).result()
    return jobs


def jobs(prompts: list[list[int]], **params: object) -> dict[str, Job]:
    return {
        str(i): Job(prompt, SamplingParams(logprobs=2, **params), ANSWER)
        for i, prompt in enumerate(prompts)
    }


def test_alone_an_answer_is_that_of_llama_cpp_itself(runner, prompts, own):
    for prompt in prompts:
        (job,) = drive(runner, jobs([prompt], temperature=0.0)).values()
        assert job.tokens == own.greedy(prompt)


@pytest.mark.parametrize("how", [{}, {"chunk": 7}, {"chunk": 33, "preempt_at": 3}], ids=str)
def test_batched_chunked_and_resumed_answers_are_near_it(runner, prompts, own, how):
    done = drive(runner, jobs(prompts, temperature=0.0, prompt_logprobs=0), **how)
    for job in done.values():
        entries = job.prompt_logprobs + job.logprobs
        assert [entry.token_id for entry in entries] == job.known[1:]
        differences = np.array([e.logprob for e in entries]) - own.check(job.prompt, job.tokens)
        assert np.abs(differences).max() < NEAR
        assert np.abs(differences).mean() < NEAR / 5


def test_parameters_reach_the_sampler(runner, prompts, own):
    best = own.greedy(prompts[0])[0]
    cases = {
        "banned": ({"bad_words_token_ids": [[best]]}, lambda token: token != best),
        "allowed": ({"allowed_token_ids": [700]}, lambda token: token == 700),
        "biased": ({"logit_bias": {17: 100.0}}, lambda token: token == 17),
        "top_k": ({"temperature": 2.0, "top_k": 1}, lambda token: token == best),
    }
    made = {
        name: Job(prompts[0], SamplingParams(**({"temperature": 0.0} | params)), 1)
        for name, (params, _) in cases.items()
    }
    drive(runner, made)
    for name, (_, is_right) in cases.items():
        assert is_right(made[name].tokens[0]), name


def test_a_seed_gives_the_same_answer_again(runner, prompts):
    first, second, other = (
        drive(runner, {"a": Job(prompts[0], SamplingParams(seed=seed), ANSWER)})["a"].tokens
        for seed in (5, 5, 6)
    )
    assert first == second != other


# ---- under the scheduler


def request(name: str, prompt: list[int], **more: object) -> AddRequest:
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    return AddRequest(
        request_id=name, prompt=pack_tokens(prompt), sampling=params, arrival_time=0.0, **more
    )


def finish(core: EngineCore) -> dict[str, list[TokenDelta]]:
    deltas: dict[str, list[TokenDelta]] = {}
    while core.has_work:
        for delta in core.step().deltas:
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


@pytest.fixture
def core(config) -> Iterator[EngineCore]:
    """An engine of its own, too small for all requests at once."""
    small = EngineConfig.of(
        model=config.model.model,
        runner="llama-cpp",
        threads=2,
        num_kv_blocks=20,
        block_size=4,
        max_num_seqs=4,
    )
    core = EngineCore(LlamaCppRunner(small), small.cache, small.scheduler)
    yield core
    core.runner.close()


def test_a_crowded_engine_answers_all(core, prompts, own):
    for round_ in range(2):
        for i, prompt in enumerate(prompts):
            core.add(request(f"{round_}-{i}", prompt))
    answers = finish(core)
    for name, deltas in answers.items():
        own.check(prompts[int(name[-1])], tokens(deltas))
    assert len(answers) == 2 * len(prompts)
    assert core.scheduler.counters.preemptions > 0


def test_a_prefix_is_found_and_an_abort_frees(core, prompts, own):
    core.add(request("first", prompts[-1]))
    finish(core)
    core.add(request("again", prompts[-1]))
    core.add(request("left", prompts[0]))
    begun = [delta for delta in core.step().deltas if delta.request_id == "again"]
    core.abort(["left"])
    (deltas,) = finish(core).values()
    own.check(prompts[-1], tokens(begun + deltas))
    assert deltas[-1].num_cached_tokens == (len(prompts[-1]) - 1) // 4 * 4
    assert core.scheduler.kv.num_used == 0


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_near_those_of_our_own_reference(runner, config, prompts, pooling):
    own = EngineConfig.of(
        model=config.model.model, kernels="reference", dtype="float32", num_kv_blocks=96,
        device="cpu", max_num_seqs=8,
    )  # fmt: skip
    reference = TorchRunner(own)
    found = []
    for engine in (runner, reference):
        core = EngineCore(engine, own.cache, own.scheduler)
        core.add(request(f"{pooling}-vector", prompts[1], pooling=pooling))
        core.add(request(f"{pooling}-answer", prompts[0]))
        vector = finish(core)[f"{pooling}-vector"][-1].embedding
        found.append(np.frombuffer(vector, "<f4"))
        engine.execute(
            StepPlan(step=0, dropped=[f"{pooling}-vector", f"{pooling}-answer"])
        ).result()
    reference.close()
    one, other = found
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
