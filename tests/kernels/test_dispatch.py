from __future__ import annotations

import pytest
import torch

from pellucid.kernels import dispatch
from pellucid.kernels.dispatch import Backend, KernelInfo, KernelsUnavailable, select_ops
from pellucid.kernels.reference import ReferenceOps

CPU = torch.device("cpu")


class FastOps(ReferenceOps):
    name = "fast"


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_reference_is_always_there(kernels: str) -> None:
    assert select_ops(kernels, CPU).name == "reference"


@pytest.mark.parametrize("kernels", ["native", "triton"])
def test_kernels_to_come_are_refused(kernels: str) -> None:
    with pytest.raises(KernelsUnavailable, match=f"{kernels}.*not part of this version"):
        select_ops(kernels, CPU)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(KernelsUnavailable, match="'abacus'; there are auto, reference"):
        select_ops("abacus", CPU)


def test_auto_prefers_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Backend(
        "fast",
        lambda device: FastOps(),
        lambda device: None if device.type == "cpu" else f"no kernels for {device.type}",
    )
    monkeypatch.setattr(dispatch, "BACKENDS", (fast, *dispatch.BACKENDS))
    meta = torch.device("meta")
    assert select_ops("auto", CPU).name == "fast"
    assert select_ops("auto", meta).name == "reference"
    with pytest.raises(KernelsUnavailable, match="'fast' cannot run here: no kernels for meta"):
        select_ops("fast", meta)
    assert dispatch.describe(meta)[0] == KernelInfo("fast", False, "no kernels for meta")


def test_describe_names_every_choice() -> None:
    lines = {line.name: line for line in dispatch.describe()}
    assert lines.keys() == {"reference", "native", "triton"}
    assert lines["reference"].available
    assert not lines["native"].available
    assert "not part of this version" in lines["native"].reason


def test_instruction_sets_come_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name : x\nflags : fpu avx2 fma avx512_bf16 amx_bf16\n"
    monkeypatch.setattr(dispatch.Path, "read_text", lambda *args, **kwargs: text)
    assert dispatch.instruction_sets() == ["avx2", "fma", "avx512_bf16", "amx_bf16"]
    monkeypatch.setattr(dispatch.Path, "read_text", lambda *args, **kwargs: "")
    assert len(dispatch.instruction_sets()) == 1
