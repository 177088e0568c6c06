"""pellucid: an LLM inference engine and server you can see through.

Names are loaded lazily: importing the package must stay cheap and must not import torch, because
the server's front end never needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.config import EngineConfig
    from pellucid.frontend.async_engine import AsyncLLM
    from pellucid.frontend.llm import LLM
    from pellucid.sampling_params import SamplingParams
    from pellucid.structured_outputs import StructuredOutputs

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "EngineConfig",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
]

_HOME = {
    "LLM": "pellucid.frontend.llm",
    "AsyncLLM": "pellucid.frontend.async_engine",
    "EngineConfig": "pellucid.config",
    "SamplingParams": "pellucid.sampling_params",
    "StructuredOutputs": "pellucid.structured_outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
