"""When Triton's kernels are taken: asked for, able to run, and not below a threshold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pellucid.kernels.dispatch import KernelsUnavailable, describe, select_ops
from pellucid.kernels.interface import KVLayer
from pellucid.kernels.reference import ReferenceOps
from pellucid.kernels.triton import thresholds
from pellucid.kernels.triton.thresholds import Thresholds, origin
from tests.device import DEVICE
from tests.kernels.test_reference_attention import Case
from tests.kernels.test_reference_ops import inputs_at, random
from tests.kernels.triton.test_attention import attend

VARIABLE = "PELLUCID_TRITON_THRESHOLDS"


def test_under_the_interpreter_they_run_on_the_cpu_if_asked_for(ops: ReferenceOps) -> None:
    assert type(select_ops("triton", DEVICE)) is type(ops)
    assert select_ops("auto", DEVICE).name != "triton"
    with pytest.raises(KernelsUnavailable, match="heads of 512 are larger than 256"):
        select_ops("triton", DEVICE, head_dim=512)


def test_thresholds_come_from_the_environment(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "rms_norm=256, gated=1024")
    assert Thresholds.current() == Thresholds(rms_norm=256, gated=1024)
    for wrong in ("softmax=1", "rope", "rope=-1", "rope=x"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(KernelsUnavailable, match=f"'{wrong}' is not NAME=NUMBER"):
            select_ops("triton", DEVICE)
    monkeypatch.setenv(VARIABLE, "product_rows=20")
    with pytest.raises(KernelsUnavailable, match="product_rows is 16, 32 or 64"):
        select_ops("triton", DEVICE)


def test_measured_thresholds_hold_for_this_device_until_the_environment_says_otherwise(
    ops: ReferenceOps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "defaults" in origin()
    path = Thresholds(rms_norm=512, product_rows=32).write()
    assert path.is_relative_to(tmp_path)
    assert Thresholds.current() == Thresholds(rms_norm=512, product_rows=32)
    assert "measured" in origin()
    monkeypatch.setenv(VARIABLE, "rms_norm=7")
    assert Thresholds.current() == Thresholds(rms_norm=7, product_rows=32)
    assert VARIABLE in origin()
    (line,) = (line for line in describe() if line.name == "triton")
    assert "rms_norm=7" in line.reason
    monkeypatch.delenv(VARIABLE)
    with monkeypatch.context() as patch:  # another GPU, or another version
        patch.setattr(thresholds, "platform_key", lambda device: "NVIDIA H200, torch 9")
        assert Thresholds.current() == Thresholds()
    path.write_text("[1]")
    assert Thresholds.current() == Thresholds()


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
