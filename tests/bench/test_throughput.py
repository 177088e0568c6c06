from __future__ import annotations

from typing import Any

import pytest

from pellucid.bench.settings import Workload
from pellucid.bench.throughput import Throughput, measure, undrafted
from pellucid.config import CacheSettings, EngineConfig, SchedulerSettings
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError, PellucidError
from pellucid.messages import AddRequest, unpack_tokens
from pellucid.runner.factory import create_random_runner
from pellucid.runner.fake import FakeRunner


class RecordingCore(EngineCore):
    """An engine that keeps the prompts it was given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prompts: list[tuple[str, list[int]]] = []

    def add(self, message: AddRequest) -> None:
        self.prompts.append((message.request_id, unpack_tokens(message.prompt)))
        super().add(message)


def core(scheduler: dict[str, Any] | None = None, **runner: Any) -> RecordingCore:
    return RecordingCore(
        FakeRunner(**runner), CacheSettings(), SchedulerSettings(**(scheduler or {}))
    )


def run(engine: EngineCore, **load: Any) -> Throughput:
    return measure(engine, Workload(**load))


def test_counts_are_those_of_the_load() -> None:
    result = run(core(), input_len=40, output_len=10, num_prompts=6, batch_size=4)
    assert result.prompt_tokens == 6 * 40
    assert result.output_tokens == 6 * 10
    assert result.cached_prompt_tokens == 0
    # Two waves, each one prefill step that also samples, then nine decode steps.
    assert (result.prefill_steps, result.decode_steps, result.mixed_steps) == (2, 18, 0)
    assert result.ttft_ms is not None
    assert result.ttft_ms.count == 6


def test_rates_are_tokens_over_the_time_of_their_steps() -> None:
    result = run(core(step_seconds=0.02), input_len=64, output_len=5, num_prompts=4, batch_size=4)
    assert result.prefill_tokens_per_s is not None
    assert result.decode_tokens_per_s is not None
    assert 0.5 * 4 * 64 / 0.02 < result.prefill_tokens_per_s <= 4 * 64 / 0.02
    assert 0.5 * 4 / 0.02 < result.decode_tokens_per_s <= 4 / 0.02
    assert result.output_tokens_per_s == pytest.approx(4 * 5 / result.seconds)


def test_chunked_prompts_make_more_prefill_steps() -> None:
    limits = {"max_num_batched_tokens": 32, "max_chunk_tokens": 32}
    result = run(core(limits), input_len=100, output_len=4, num_prompts=1, batch_size=1)
    assert (result.prefill_steps, result.decode_steps) == (4, 3)


def test_steps_that_decode_beside_a_prompt_are_mixed() -> None:
    limits = {"max_num_batched_tokens": 64, "max_chunk_tokens": 64}
    result = run(core(limits), input_len=64, output_len=20, num_prompts=3, batch_size=3)
    assert result.mixed_steps > 0
    # Whatever the mix, every prompt and answer token is accounted for once.
    assert (result.prompt_tokens, result.output_tokens) == (3 * 64, 3 * 20)


def test_prompts_share_nothing_unless_asked() -> None:
    engine = core()
    run(engine, input_len=48, output_len=2, num_prompts=8, batch_size=4)
    starts = {tuple(prompt[:16]) for _, prompt in engine.prompts}
    assert len(starts) == len(engine.prompts) == 4 + 8  # a warm-up wave, then the load


def test_shared_prefix_is_found_in_the_cache() -> None:
    engine = core()
    result = run(engine, input_len=48, output_len=2, num_prompts=4, batch_size=2, shared_prefix=32)
    assert len({tuple(prompt[:32]) for _, prompt in engine.prompts}) == 1
    assert result.cached_prompt_tokens == 4 * 32
    assert result.prompt_tokens == 4 * 16


def test_same_seed_same_prompts() -> None:
    first, second, other = core(), core(), core()
    run(first, output_len=2, seed=5)
    run(second, output_len=2, seed=5)
    run(other, output_len=2, seed=6)
    assert first.prompts == second.prompts
    assert first.prompts != other.prompts


def test_end_token_does_not_end_an_answer() -> None:
    engine = core(answer_vocab=range(2, 3), eos_token_ids=(2,))
    assert run(engine, output_len=7, num_prompts=2).output_tokens == 14


def test_preemptions_are_told() -> None:
    engine = core(num_blocks=12, block_size=16)
    result = run(engine, input_len=30, output_len=60, num_prompts=4, batch_size=4)
    assert result.preemptions > 0
    assert result.output_tokens == 4 * 60


def test_single_token_answers_have_no_decode_rate() -> None:
    result = run(core(), output_len=1, num_prompts=2)
    assert result.decode_tokens_per_s is None
    assert result.decode_step_ms is None


def test_load_beyond_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="--input-len and --output-len: 129 tokens"):
        run(core(max_model_len=128), input_len=65, output_len=64)


def test_refused_request_is_an_error() -> None:
    class Losing(RecordingCore):
        def add(self, message: AddRequest) -> None:
            message.prompt = b""
            super().add(message)

    engine = Losing(FakeRunner(), CacheSettings(), SchedulerSettings())
    with pytest.raises(PellucidError, match="refused a request: the prompt is empty"):
        run(engine)


def test_shared_prefix_longer_than_the_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="--shared-prefix: must be at most --input-len, 8"):
        Workload(input_len=8, shared_prefix=9)


def test_of_experts_only_those_that_are_chosen_are_read() -> None:
    config = EngineConfig.of(kernels="reference", dtype="float32", num_kv_blocks=20, max_num_seqs=4)
    runner = create_random_runner(config, "tiny-moe")
    info = runner.info()
    runner.close()
    assert info.weight_bytes == 4 * info.num_parameters
    assert info.expert_weight_bytes == 4 * (4 * 16 * 3 * 128 * 64)  # layers, experts, matrices
    for tokens, chosen in ((1, 1 / 4), (2, 7 / 16)):  # a token has four of sixteen
        read = info.weight_bytes - (1 - chosen) * info.expert_weight_bytes
        assert info.bytes_read(tokens) == pytest.approx(read)
    dense = core().info
    assert dense.bytes_read(1) == dense.bytes_read(30) == dense.weight_bytes


def test_nothing_is_guessed_unless_it_is_asked_for() -> None:
    assert undrafted(EngineConfig.of()).scheduler.speculative == "none"
    asked = EngineConfig.of(speculative="ngram", max_num_seqs=3)
    assert undrafted(asked) == asked
