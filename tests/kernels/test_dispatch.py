from __future__ import annotations

import sys

import pytest
import torch

import pellucid
from pellucid.kernels import dispatch, native
from pellucid.kernels.dispatch import Backend, KernelInfo, KernelsUnavailable, select_ops
from pellucid.kernels.reference import ReferenceOps

CPU = torch.device("cpu")
META = torch.device("meta")


class FastOps(ReferenceOps):
    name = "fast"


def test_reference_is_always_there() -> None:
    assert select_ops("reference", CPU).name == "reference"
    assert select_ops("auto", META).name == "reference"


def test_triton_is_for_gpus() -> None:
    with pytest.raises(KernelsUnavailable, match=r"'triton' cannot run here: .* not for cpu"):
        select_ops("triton", CPU)
    with pytest.raises(KernelsUnavailable, match="not cuda:1"):
        select_ops("triton", torch.device("cuda:1"))


def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(KernelsUnavailable, match=r"pellucid\[gpu\]"):
        select_ops("triton", torch.device("cuda"))


def test_native_kernels_are_for_cpus() -> None:
    with pytest.raises(KernelsUnavailable, match="for CPUs, not for meta"):
        select_ops("native", META)


@pytest.mark.skipif(native.obstacle(CPU) is not None, reason="the C++ part is not built")
def test_native_kernels_leave_heads_they_cannot_split(caplog: pytest.LogCaptureFixture) -> None:
    assert select_ops("auto", CPU, head_dim=64).name == "native"
    assert not caplog.records
    assert select_ops("auto", CPU, head_dim=24).name == "reference"
    assert "native kernels cannot run this model: heads of 24" in caplog.text
    with pytest.raises(KernelsUnavailable, match="'native' cannot run here: heads of 24"):
        select_ops("native", CPU, head_dim=24)


def test_a_missing_extension_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pellucid._native", None)
    monkeypatch.delattr(pellucid, "_native", raising=False)
    assert select_ops("auto", CPU).name == "reference"
    with pytest.raises(KernelsUnavailable, match="installed without its C\\+\\+ part"):
        select_ops("native", CPU)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(
        KernelsUnavailable, match="'abacus'; there are auto, native, reference, triton"
    ):
        select_ops("abacus", CPU)


def test_auto_prefers_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Backend(
        "fast",
        FastOps,
        lambda device: None if device.type == "cpu" else f"no kernels for {device.type}",
    )
    monkeypatch.setattr(dispatch, "BACKENDS", (fast, *dispatch.BACKENDS))
    assert select_ops("auto", CPU).name == "fast"
    assert select_ops("auto", META).name == "reference"
    with pytest.raises(KernelsUnavailable, match="'fast' cannot run here: no kernels for meta"):
        select_ops("fast", META)
    assert dispatch.describe(META)[0] == KernelInfo("fast", False, "no kernels for meta")


def test_describe_names_every_choice() -> None:
    lines = {line.name: line for line in dispatch.describe()}
    assert lines.keys() == {"reference", "native", "triton"}
    assert lines["reference"].available
    assert not lines["triton"].available
    assert "not for cpu" in lines["triton"].reason


def test_instruction_sets_come_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name : x\nflags : fpu avx2 fma avx512_bf16 amx_bf16\n"
    monkeypatch.setattr(dispatch.Path, "read_text", lambda *args, **kwargs: text)
    assert dispatch.instruction_sets() == ["avx2", "fma", "avx512_bf16", "amx_bf16"]
    text = "processor : 0\nFeatures : fp asimd crc32 asimddp\nCPU implementer : 0x41\n"
    assert dispatch.instruction_sets() == ["asimd", "asimddp"]
    monkeypatch.setattr(dispatch.Path, "read_text", lambda *args, **kwargs: "")
    assert len(dispatch.instruction_sets()) == 1
