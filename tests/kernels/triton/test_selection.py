"""When Triton's kernels are taken: asked for, able to run, and not below a threshold."""

from __future__ import annotations

import pytest
import torch

from pellucid.kernels.dispatch import KernelsUnavailable, select_ops
from pellucid.kernels.interface import KVLayer
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.triton.thresholds import Thresholds
from tests.kernels.test_reference_attention import Case
from tests.kernels.test_reference_ops import inputs_at, random
from tests.kernels.triton.test_attention import attend

CPU = torch.device("cpu")
VARIABLE = "PELLUCID_TRITON_THRESHOLDS"


def test_under_the_interpreter_they_run_on_the_cpu_if_asked_for(ops: ReferenceOps) -> None:
    assert type(select_ops("triton", CPU)) is type(ops)
    assert select_ops("auto", CPU).name != "triton"
    with pytest.raises(KernelsUnavailable, match="heads of 512 are larger than 256"):
        select_ops("triton", CPU, head_dim=512)


def test_thresholds_come_from_the_environment(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "rms_norm=256, gated=1024")
    assert Thresholds.from_environment() == Thresholds(rms_norm=256, gated=1024)
    for wrong in ("softmax=1", "rope", "rope=-1", "rope=x"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(KernelsUnavailable, match=f"'{wrong}' is not NAME=COLUMNS"):
            select_ops("triton", CPU)


def test_below_a_threshold_torch_computes(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pellucid.kernels.triton import activation, attention_plan, norm, rope

    for module in (activation, attention_plan, norm, rope):
        for launch in ("rms_norm", "add_rms_norm", "gated_activation", "rope_and_write_kv"):
            monkeypatch.setattr(module, launch, None, raising=False)
    monkeypatch.setattr(attention_plan, "attend", None)
    patient = type(ops)(Thresholds(rms_norm=65, gated=65, rope=65, attention=65))
    x, weight = random(2, 64), random(64, seed=1)
    assert torch.equal(patient.rms_norm(x, weight, 1e-5), ReferenceOps().rms_norm(x, weight, 1e-5))
    patient.add_rms_norm(x, x, weight, 1e-5)
    patient.silu_mul(x)
    patient.gelu_mul(x, approximate=True)
    heads, angles = random(2, 1, 64), random(4, 32)
    pool = KVLayer(torch.zeros(1, 4, 1, 64), torch.zeros(1, 4, 1, 64))
    patient.rope_and_write_kv(heads, heads, heads, angles, angles, inputs_at([0, 1], [0, 1]), pool)
    attend(patient, *Case(2, 1, 64).step([(0, 0, 3)]))
