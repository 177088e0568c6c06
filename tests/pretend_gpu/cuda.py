"""What of torch.cuda and of Triton's interpreter has to be another for a GPU that is pretended."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from triton.runtime import interpreter

from tests.pretend_gpu.tensors import NUM_GPUS, WORK, Current, Making, Pretending, held, tensors

MEMORY = 8 << 30
# As an H200 says of itself.
PROPERTIES = SimpleNamespace(
    name="a pretended GPU",
    multi_processor_count=132,
    total_memory=MEMORY,
    L2_cache_size=50 << 20,
    major=9,
    minor=0,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    shared_memory_per_block_optin=232_448,
)


class Event:
    """A point behind the copies that were under way when it was recorded."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._late: list[Callable[[], object]] = []

    def record(self, stream: object = None) -> None:
        if WORK.recorded is not None:
            raise RuntimeError("an event while a graph is captured")
        self._late = list(WORK.late)

    def synchronize(self) -> None:
        if WORK.recorded is not None:
            raise RuntimeError("the host cannot wait while a graph is captured")
        behind = [i for i, copy in enumerate(WORK.late, 1) if copy in self._late]
        WORK.finish(max(behind, default=0))

    def query(self) -> bool:
        return not any(copy in self._late for copy in WORK.late)

    def elapsed_time(self, end: Event) -> float:
        return 1.0


class Generator(torch._C.Generator):
    """Of random numbers, for either device."""

    def __new__(cls, device: object = "cpu") -> Generator:
        return super().__new__(cls)


class Stream:
    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None:
        WORK.wait("stream")


STREAM = Stream()


class CUDAGraph:
    """Repeats the very ops and launches that were captured, on the same memory."""

    def __init__(self) -> None:
        self.captured: list[tuple[Any, ...]] = []

    def replay(self) -> None:
        for again, out, writes in self.captured:
            found = again()
            if not writes:
                for old, new in zip(tensors(out), tensors(found), strict=True):
                    old.copy_(new)


@contextmanager
def graph(
    into: CUDAGraph, pool: object = None, stream: object = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    WORK.recorded = into.captured
    try:
        yield
    finally:
        WORK.recorded = None


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    yield


def pretend() -> None:
    """From now on this process has a GPU."""
    for name, value in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: NUM_GPUS,
        "current_device": lambda: Current.index,
        "set_device": _set_device,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda: True,
        "synchronize": lambda device=None: WORK.wait("synchronize"),
        "Event": Event,
        "Stream": Stream,
        "current_stream": lambda device=None: STREAM,
        "set_stream": lambda stream: None,
        "stream": on_stream,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 0),
    }.items():
        setattr(torch.cuda, name, value)
    dist.init_process_group = _init_process_group
    torch.Generator = Generator  # type: ignore[misc]
    interpreter.GridExecutor.__call__ = _launch  # type: ignore[method-assign]
    interpreter.InterpreterBuilder.create_dot = _dot  # type: ignore[method-assign]
    threading.Thread.run = _run  # type: ignore[method-assign]
    _build_guard()
    Making().__enter__()
    Pretending().__enter__()


def _set_device(device: torch.device | int) -> None:
    Current.index = torch.device("cuda", device).index if isinstance(device, int) else device.index


def _init_process_group(backend: str, *, device_id: torch.device | None, **options: Any) -> None:
    """Gloo does on the CPU's tensors what NCCL would on those that hold them."""
    _init_plain("gloo" if backend == "nccl" else backend, **options)


def _build_guard() -> None:
    """What torch's C++ asks to change to a device and back. It does nothing."""
    lies = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "guard.so"
        source = Path(__file__).with_name("guard.cpp")
        includes, libraries = f"-I{lies / 'include'}", f"-L{lies / 'lib'}"
        options = ["-std=c++20", "-fPIC", "-shared", includes, libraries]
        subprocess.run(["c++", *options, source, "-lc10", "-o", built], check=True)
        ctypes.CDLL(str(built))


_call = interpreter.GridExecutor.__call__
_init_plain = dist.init_process_group
_run_plain = threading.Thread.run


def _launch(self: Any, *args: Any, **kwargs: Any) -> None:
    def again() -> None:
        _call(self, *plain_args, **plain_kwargs)

    plain_args = [held(x) for x in args]
    plain_kwargs = {name: held(x) for name, x in kwargs.items()}
    again()
    WORK.record(again, None, True)


def _dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """A product whose sums do not depend on a row's place in its tile, as numpy's BLAS's do."""
    left, right = (x.data.astype(d.data.dtype) for x in (a, b))
    return type(d)(np.einsum("ij,jk->ik", left, right) + d.data, d.dtype.scalar)


def _run(self: threading.Thread) -> None:
    with Making(), Pretending():
        _run_plain(self)
