"""Tensors that say they are on a GPU, and are as strict about it as a GPU's are.

Each holds a tensor of the CPU, on which its ops are done. What a real one would refuse is refused:
to be mixed with tensors of the CPU, or to be read as an array. What lets the host wait for the
device is counted, and copies that nobody waits for are late: what they bring to the host is there
when an event behind them was waited for, and what they take from it must stay as it is until then.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
# Their result has a size, or is a number, that only the device knows.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
# Take tensors of both, by design.
COPIES = {"copy_", "_to_copy"}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
ADDRESSES = {torch.Tensor.data_ptr, torch.Tensor.untyped_storage}
POISON = 0xA5  # what a late copy leaves of its target until it has come


class OnGPU(torch.Tensor):
    """Says it is on a GPU, and holds a tensor of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> OnGPU:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )

    def __init__(self, held: Tensor, device: torch.device) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"OnGPU({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} in a thread that does not know of the GPU")


@dataclass
class Work:
    """What the pretended GPU was given to do."""

    waits: Counter[str] = field(default_factory=Counter)  # by the op that made the host wait
    late: list[Callable[[], object]] = field(default_factory=list)  # copies under way
    recorded: list[tuple[Any, ...]] | None = None  # while a graph is captured
    pinned: dict[int, Tensor] = field(default_factory=dict)  # by where their memory begins

    def wait(self, name: str) -> None:
        if self.recorded is not None:
            raise RuntimeError(f"{name}: the host cannot wait while a graph is captured")
        self.waits[name] += 1
        self.finish(len(self.late))

    def finish(self, count: int) -> None:
        """Of the copies under way the first `count`."""
        while count and self.late:
            count -= 1
            self.late.pop(0)()

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor  # kept: no other may lie there
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def record(self, again: Callable[[], Any], out: Any, writes: bool) -> None:
        if self.recorded is not None:
            self.recorded.append((again, out, writes))


WORK = Work()
NUM_GPUS = int(os.environ.get("PRETENDED_GPUS", "1"))


class Current:
    """The GPU that is meant where none is named."""

    index = 0


class Pretending(TorchDispatchMode):
    """While this is on, "cuda" is a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        ours = [x for x in given if isinstance(x, OnGPU)]
        target = kwargs.get("device")
        if target is not None:
            target = torch.device(target)
            kwargs["device"] = CPU if target.type == "cuda" else target
        if kwargs.pop("pin_memory", False) and not ours:
            return WORK.pin(func(*args, **kwargs))
        if name in ("_pin_memory", "pin_memory"):
            return WORK.pin(args[0].clone())
        if name == "is_pinned":
            return WORK.is_pinned(args[0])
        if not ours and (target is None or target.type != "cuda"):
            return func(*args, **kwargs)
        if name in COPIES:
            return _copied(func, name, args, kwargs, target)
        _check_devices(func, given, target)
        if name in READS or _picks_by_mask(name, args):
            WORK.wait(name)
        device = next((x.device for x in ours), None) if target is None else target
        return _computed(func, args, kwargs, device)


class Making(TorchFunctionMode):
    """Some functions ask a real GPU for its number, or for room, before they do anything."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_numbered, (args, kwargs))
        if func is torch.Tensor.tolist:
            return func(args[0].cpu())
        if func in ADDRESSES and isinstance(args[0], OnGPU):
            return func(args[0].held)
        if func not in FROM_NUMBERS:
            return func(*args, **kwargs)
        device, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
        if not isinstance(args[0], Tensor):
            args = tree_map(lambda x: x.item() if isinstance(x, OnGPU) else x, args)
        made = func(*args, **kwargs)
        if pinned:
            return WORK.pin(made)
        return made if device is None else made.to(_numbered(device))


def _numbered(x: Any) -> Any:
    has_none = isinstance(x, str | torch.device) and str(x) == "cuda"
    return torch.device("cuda", Current.index) if has_none else x


def _computed(func: Any, args: Any, kwargs: Any, device: torch.device | None) -> Any:
    """The op on what is held, and its result as a tensor of `device`."""
    known: dict[int, OnGPU] = {}

    def unwrap(x: Any) -> Any:
        if isinstance(x, OnGPU):
            known[id(x.held)] = x
            return x.held
        return CPU if isinstance(x, torch.device) else x

    plain_args, plain_kwargs = tree_map(unwrap, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    _remember(func, plain_args, plain_kwargs, out)
    if device is None or device.type != "cuda":
        return out
    device = _numbered(device)

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        same = known.get(id(x))
        return OnGPU(x, device) if same is None else same

    return tree_map(wrap, out)


def _remember(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    if WORK.recorded is None:
        return
    aliases = [argument.alias_info for argument in func._schema.arguments]
    writes = any(alias is not None and alias.is_write for alias in aliases)
    is_view = not writes and any(r.alias_info is not None for r in func._schema.returns)

    def again() -> Any:
        found = func(*args, **kwargs)
        for x in tree_flatten(found)[0]:
            if hasattr(x, "wait"):  # what ranks send each other
                x.wait()
        return found

    if not is_view:  # those are of the same memory as before
        WORK.record(again, out, writes)


def _check_devices(func: Any, given: list[Tensor], target: torch.device | None) -> None:
    strangers = [x for x in given if not isinstance(x, OnGPU) and x.dim() > 0]
    gpus = {_numbered(x.device) for x in given if isinstance(x, OnGPU)}
    if strangers or len(gpus) > 1 or (target is not None and target.type != "cuda"):
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found "
            f"{[(tuple(x.shape), str(x.device)) for x in given]} and {target}"
        )


def _picks_by_mask(name: str, args: Any) -> bool:
    """Whether it is an index by a mask, whose result is as long as the mask says."""
    if name not in ("index", "index_put_", "_index_put_impl_"):
        return name == "repeat_interleave"
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _copied(
    func: Any, name: str, args: Any, kwargs: dict[str, Any], target: torch.device | None
) -> Any:
    """Between the devices, or on one of them."""
    if name == "copy_":
        to, source = args[0], args[1]
        late = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        from_gpu, to_gpu = isinstance(source, OnGPU), isinstance(to, OnGPU)
    else:
        to, source = None, args[0]
        late = bool(kwargs.get("non_blocking", False))
        from_gpu = isinstance(source, OnGPU)
        to_gpu = from_gpu if target is None else target.type == "cuda"
    if from_gpu == to_gpu:
        return _computed(func, args, kwargs, source.device)
    if WORK.recorded is not None:
        raise RuntimeError(f"{func}: a copy from or to the host while a graph is captured")
    if not late and not (to_gpu and source.dim() == 0):  # a number goes with the launch
        WORK.wait(f"{name} to {'cuda' if to_gpu else 'cpu'}")
    if to_gpu:
        if late and not WORK.is_pinned(source):
            WORK.wait(f"{name} from memory that is not pinned")
        elif late:
            WORK.late.append(_unchanged(source))
        return _computed(func, args, kwargs, target or to.device)
    if not late:
        return _computed(func, args, kwargs, None)
    arrived = source.held.clone()
    out = _computed(func, args, kwargs, None)
    out.reshape(-1).view(torch.uint8).fill_(POISON)
    WORK.late.append(lambda: out.copy_(arrived))
    return out


def _unchanged(source: Tensor) -> Callable[[], None]:
    before = source.clone()

    def check() -> None:
        if not torch.equal(before, source):
            raise RuntimeError("pinned memory was written before it had been copied")

    return check


def held(x: Any) -> Any:
    """What a kernel gets of an argument. Raises ValueError for a tensor that it cannot reach."""
    here = torch.device("cuda", Current.index)
    if isinstance(x, Tensor) and x.device != here:
        raise ValueError(f"a kernel on {here} was given {tuple(x.shape)} on {x.device}")
    return x.held if isinstance(x, OnGPU) else x


def tensors(out: Any) -> Iterator[Tensor]:
    yield from (x for x in tree_flatten(out)[0] if isinstance(x, Tensor))
