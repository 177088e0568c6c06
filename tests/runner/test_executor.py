"""Executors: a recorded program gives what the model gives, in as many passes as memory allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pellucid.errors import ModelError
from pellucid.kernels import native
from pellucid.kernels.interface import allocate_kv
from pellucid.kernels.native import NativeOps
from pellucid.kernels.reference import ReferenceOps
from pellucid.models.config import ModelConfig
from pellucid.models.registry import build_model, random_weights
from pellucid.runner import native_executor
from pellucid.runner.batch import StepRows
from pellucid.runner.executor import Executor, make_executor

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture="qwen2",
    vocab_size=300,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_position=128,
    attention_bias=True,
)
ROWS = 40

pytestmark = pytest.mark.skipif(
    native.obstacle(CPU) is not None, reason="the C++ part is not built"
)


def make(ops: ReferenceOps, max_rows: int = ROWS, config: ModelConfig = CONFIG) -> Executor:
    model = build_model(config, random_weights(config), ops, torch.float32, CPU)
    kv = allocate_kv(config.num_layers, 8, 16, 2, config.head_dim, torch.float32, CPU)
    return make_executor(
        model, kv, CPU, max_rows=max_rows, max_num_seqs=2, max_model_len=128, threads=2
    )


def step() -> StepRows:
    """Two sequences, of 25 tokens and of 15."""
    positions = np.concatenate((np.arange(25), np.arange(15)))
    first_block = np.repeat([2, 5], [25, 15])
    return StepRows(
        rows=np.array([0, 1]),
        query_start=np.array([0, 25, 40], np.int32),
        seq_lens=np.array([25, 15], np.int32),
        token_ids=(positions * 37 + first_block) % CONFIG.vocab_size,
        positions=positions,
        slot_mapping=first_block * 16 + positions,
        block_tables=np.array([[2, 3], [5, 0]], np.int32),
        new_blocks=[(0, 0, [2, 3]), (1, 0, [5])],
    )


@torch.inference_mode()
def test_both_executors_agree() -> None:
    wanted = np.array([24, 39, 0, 1, 2])
    forwards = [make(ops).launch(step(), wanted) for ops in (ReferenceOps(), NativeOps())]
    for begin, end in ((0, 2), (2, 5), (1, 3), (2, 2)):
        expected, found = (torch.as_tensor(f.logits(begin, end)) for f in forwards)
        assert found.shape == (end - begin, CONFIG.vocab_size)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_logits_beyond_the_limit_are_computed_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = np.arange(ROWS)
    whole = make(NativeOps()).launch(step(), wanted).logits(0, ROWS)
    monkeypatch.setattr(native_executor, "MAX_LOGITS_BYTES", 4 * CONFIG.vocab_size * 16)
    forward = make(NativeOps()).launch(step(), wanted)
    parts = [forward.logits(i, min(i + 7, ROWS)).copy() for i in range(0, ROWS, 7)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("softcap", [None, 0.5])
@torch.inference_mode()
def test_the_likeliest_tokens_are_those_of_the_logits(softcap: float | None) -> None:
    config = replace(CONFIG, logits_softcap=softcap)
    wanted = np.array([24, 39, 0, 1, 2, 39])
    logits = make(NativeOps(), config=config).launch(step(), wanted).logits(0, len(wanted))
    found = make(NativeOps(), config=config).likeliest(step(), wanted)
    assert found is not None
    assert found.token_ids.tolist() == logits.argmax(-1).tolist()
    assert not found.failed.any()
    assert found[[4, 1]].token_ids.tolist() == logits[[4, 1]].argmax(-1).tolist()


def test_torch_needs_logits() -> None:
    assert make(ReferenceOps()).likeliest(step(), np.array([0])) is None


def test_a_step_larger_than_was_said_is_refused() -> None:
    with pytest.raises(ValueError, match="40"):
        make(NativeOps(), max_rows=39).launch(step(), np.array([0]))


def test_a_model_beyond_the_kernels_is_told() -> None:
    with pytest.raises(ModelError, match=r"heads of 24 .* use --kernels reference"):
        make(NativeOps(), config=replace(CONFIG, head_dim=24))
