"""What `pellucid doctor` finds out. Whatever cannot be found out becomes a problem, not an error.

The sizes are those that the engine would choose, by the same functions (`runner/device.py`,
`runner/memory.py`); without torch, which they need, they are left out.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.config import MIB, EngineConfig, ModelSettings, ServerConfig
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    import torch

    from pellucid.load.files import ModelFiles
    from pellucid.models.config import ModelConfig


class Diagnosis(msgspec.Struct, kw_only=True):
    """Everything the doctor says; sizes in MiB."""

    machine: dict[str, Any]
    versions: dict[str, str | None]
    compute: dict[str, Any] | None  # device, dtype, kernels, threads, ranks, who guesses
    kernels: list[dict[str, Any]]
    model: dict[str, Any] | None
    draft_model: dict[str, Any] | None
    memory: dict[str, Any] | None
    address: dict[str, Any]
    problems: list[str]


def diagnose(engine: EngineConfig, server: ServerConfig) -> Diagnosis:
    """Look at everything; never raises for what is merely missing."""
    from pellucid.bench.machine import describe_machine, describe_versions

    problems: list[str] = []

    def attempt(find: Callable[[], Any], otherwise: Any = None) -> Any:
        try:
            return find()
        except (PellucidError, ValueError) as error:  # kernels raise ValueError
            problems.append(str(error))
        except ImportError as error:
            problem = f"{error.name or error} cannot be imported: {error}"
            if problem not in problems:
                problems.append(problem)
        return otherwise

    files = attempt(lambda: _local_files(engine.model))
    wanted = attempt(engine.draft)
    draft = attempt(lambda: _local_files(wanted)) if wanted else None
    compute = attempt(lambda: _compute(engine, files))
    return Diagnosis(
        machine=describe_machine(),
        versions=describe_versions(),
        compute=compute,
        kernels=attempt(lambda: _kernels(engine), []),
        model=attempt(lambda: _model(files)) if files else None,
        draft_model=attempt(lambda: _model(draft)) if draft else None,
        memory=attempt(lambda: _memory(engine, files, draft, compute["kernels"]))
        if files and compute
        else None,
        address=_address(server, problems),
        problems=problems,
    )


def _local_files(settings: ModelSettings) -> ModelFiles:
    """Never downloads: a doctor looks."""
    from pellucid.load.hub import resolve

    return resolve(msgspec.structs.replace(settings, offline=True))


def _compute(engine: EngineConfig, files: ModelFiles | None) -> dict[str, Any]:
    from pellucid.runner.factory import check_ranks

    check_ranks(engine.runner)
    if engine.runner.runner == "llama-cpp":
        return _llama_cpp_compute(engine)
    from pellucid.kernels.dispatch import select_ops
    from pellucid.runner.device import compute_threads, pick_dtype, pick_rank_device

    ranks = engine.runner.tensor_parallel_size
    device = pick_rank_device(engine.runner.device, 0, ranks)
    dtype = pick_dtype(engine.model.dtype, device)
    head_dim = _shard(engine, files).head_dim if files else None
    kernels = select_ops(engine.runner.kernels, device, head_dim, ranks).name
    return {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": kernels,
        "threads": engine.runner.threads or compute_threads(),
        "ranks": ranks,
        "speculative": engine.scheduler.guesses_by(kernels),
    }


def _shard(engine: EngineConfig, files: ModelFiles) -> ModelConfig:
    """The shape of what one rank computes."""
    from pellucid.load.model_config import load_config
    from pellucid.load.sharded import shard_config

    return shard_config(load_config(files), engine.runner.tensor_parallel_size)


def _llama_cpp_compute(engine: EngineConfig) -> dict[str, Any]:
    from pellucid.runner.device import compute_threads
    from pellucid.runner.llama_cpp.context import import_llama_cpp
    from pellucid.runner.llama_cpp.runner import check_settings

    check_settings(engine)
    return {
        "device": "cpu",
        "dtype": "float32",
        "kernels": f"llama-cpp-python {import_llama_cpp().__version__}",
        "threads": engine.runner.threads or compute_threads(),
        "ranks": 1,
        "speculative": "none",
    }


def _kernels(engine: EngineConfig) -> list[dict[str, Any]]:
    from pellucid.kernels.dispatch import describe
    from pellucid.runner.device import pick_device

    return [asdict(kernel) for kernel in describe(pick_device(engine.runner.device))]


def _model(files: ModelFiles) -> dict[str, Any]:
    from pellucid.load.model_config import load_config
    from pellucid.models.shapes import count_parameters

    config = load_config(files)
    return {
        "name": files.name,
        "path": str(files.path),
        "format": files.kind,
        "size_mib": _size_on_disk(files) // MIB,
        "architecture": config.architecture,
        "layers": config.num_layers,
        "context": config.max_position,
        "parameters": count_parameters(config),
    }


def _memory(
    engine: EngineConfig, files: ModelFiles, draft: ModelFiles | None, kernels: str
) -> dict[str, Any]:
    from pellucid.load.model_config import load_config
    from pellucid.runner import device as device_api
    from pellucid.runner.memory import kv_pool_blocks, model_len_limit

    config, cache, ranks = load_config(files), engine.cache, engine.runner.tensor_parallel_size
    if engine.runner.runner == "llama-cpp":
        return _llama_cpp_memory(engine, files, config)
    device = device_api.pick_device(engine.runner.device)
    sizes = [_sizes(engine, each, device, kernels) for each in (files, draft) if each is not None]
    weights, block_bytes = (sum(column) for column in zip(*sizes, strict=True))
    max_model_len = model_len_limit(config, engine.model.max_model_len)
    available = device_api.available_memory(device)
    if device.type == "cuda":
        available *= ranks
    blocks = kv_pool_blocks(
        cache, block_bytes, available - weights, engine.scheduler.max_num_seqs, max_model_len
    )
    return {
        "available_mib": available // MIB,
        "weights_mib": weights // MIB,
        "kv_pool_mib": blocks * block_bytes // MIB,
        "kv_pool_tokens": blocks * cache.block_size,
        "kv_bytes_per_token": block_bytes // cache.block_size,
    }


def _sizes(
    engine: EngineConfig, files: ModelFiles, device: torch.device, kernels: str
) -> tuple[int, int]:
    """Bytes of a model's weights, and of its keys and values in a block."""
    from pellucid.kernels.interface import kv_head_bytes
    from pellucid.load.model_config import load_config
    from pellucid.models.shapes import count_parameters
    from pellucid.runner import device as device_api
    from pellucid.runner.memory import kv_block_bytes

    config, ranks = load_config(files), engine.runner.tensor_parallel_size
    dtype = device_api.pick_dtype(engine.model.dtype, device)
    kv_dtype = device_api.pick_kv_dtype(engine, device, kernels, config.plain_keys)
    weights = count_parameters(config) * dtype.itemsize
    if kernels == "native" and files.kind == "gguf":  # whose blocks stay as small as they are
        weights = _size_on_disk(files)
    head_bytes = kv_head_bytes(config.head_dim, kv_dtype)
    return weights, kv_block_bytes(
        _shard(engine, files), engine.cache.block_size, head_bytes
    ) * ranks


def _llama_cpp_memory(
    engine: EngineConfig, files: ModelFiles, config: ModelConfig
) -> dict[str, Any]:
    from pellucid.runner import device as device_api
    from pellucid.runner.llama_cpp.runner import CPU, size_pool

    pool, _ = size_pool(engine, config)
    return {
        "available_mib": device_api.available_memory(CPU) // MIB,
        "weights_mib": _size_on_disk(files) // MIB,
        "kv_pool_mib": pool.num_blocks * pool.block_bytes // MIB,
        "kv_pool_tokens": pool.num_blocks * pool.block_size,
        "kv_bytes_per_token": pool.block_bytes // pool.block_size,
    }


def _size_on_disk(files: ModelFiles) -> int:
    if files.kind == "gguf":
        return files.path.stat().st_size
    return sum(path.stat().st_size for path in files.path.iterdir() if path.is_file())


def _address(server: ServerConfig, problems: list[str]) -> dict[str, Any]:
    free = _is_free(server.host, server.port)
    if not free:
        problems.append(f"{server.host}:{server.port} is taken or not this machine's: use --port")
    return {"host": server.host, "port": server.port, "free": free}


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True
