"""Makes the runner that a configuration asks for, importing only what that one needs."""

from __future__ import annotations

from pellucid.config import EngineConfig, RunnerSettings
from pellucid.errors import ConfigError
from pellucid.runner.base import Runner


def check_ranks(settings: RunnerSettings) -> None:
    """Raises ConfigError if the runner has one rank only, and more were asked for."""
    if settings.runner != "torch" and settings.tensor_parallel_size > 1:
        raise ConfigError(
            f"--tensor-parallel-size is for --runner torch, not {settings.runner}",
            param="tensor_parallel_size",
        )


def create_runner(config: EngineConfig) -> Runner:
    """Load the model and take the memory. Raises ModelError or ConfigError."""
    check_ranks(config.runner)
    if config.runner.runner == "fake":
        from pellucid.runner.fake import FakeRunner

        return FakeRunner.from_config(config)
    if config.runner.runner == "llama-cpp":
        from pellucid.runner.llama_cpp.runner import LlamaCppRunner

        return LlamaCppRunner(config)
    return _torch_runner(config)


def create_random_runner(config: EngineConfig, shape: str) -> Runner:
    """The engine's own runner with random weights in the shape of a known model.

    Raises:
        ConfigError: no such shape, or a setting that needs a file.
    """
    if config.runner.runner != "torch":
        raise ConfigError("--random-weights is for --runner torch", param="random_weights")
    return _torch_runner(config, shape)


def _torch_runner(config: EngineConfig, shape: str | None = None) -> Runner:
    if config.runner.tensor_parallel_size > 1:
        from pellucid.runner.parallel.leader import start_ranks

        return start_ranks(config, shape)
    from pellucid.runner.torch_runner import TorchRunner

    return TorchRunner(config, shape=shape)
