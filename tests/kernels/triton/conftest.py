from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.kernels.reference import ReferenceOps
from tests.device import on_device, where_torch_is_not_invariant
from tests.triton_interpreter import interpreting


@pytest.fixture(scope="package", autouse=True)
def nothing_measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Thresholds that were measured on this machine do not count here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def tensors_on_the_device() -> Iterator[None]:
    with on_device():
        yield


@pytest.fixture(scope="package")
def ops() -> Iterator[ReferenceOps]:
    """The ops of Triton, run by its interpreter or on the GPU under test."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    with interpreting():
        from pellucid.kernels.triton_ops import TritonOps

        with where_torch_is_not_invariant():
            made = TritonOps()
        yield made
