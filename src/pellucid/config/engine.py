"""What the engine process is told: the model, its memory, its scheduler and what runs it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from pellucid.config.compose import compose
from pellucid.config.fields import Count, Threads, about
from pellucid.errors import ConfigError


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and how it is held in memory."""

    model: Annotated[
        str,
        about(
            "Alias (see `pellucid models`), .gguf file, Hugging Face folder, or hf:org/name[:file]."
        ),
    ] = "smollm2-135m"
    served_model_name: Annotated[
        str | None, about("Name under which the API serves the model; its own by default.")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        about("Type of float weights and of activations; auto: bfloat16 where it is fast."),
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8", "int4"],
        about("Round float weights while loading; weights that are quantised already stay so."),
    ] = "none"
    max_model_len: Annotated[
        Count | None,
        about("Longest prompt plus answer, in tokens; the model's own limit by default."),
    ] = None
    chat_template: Annotated[
        str | None, about("File with a Jinja chat template that replaces the model's own.")
    ] = None
    cache_dir: Annotated[
        str | None, about("Folder for downloaded models; ~/.cache/pellucid by default.")
    ] = None
    offline: Annotated[bool, about("Never touch the network; use what is already there.")] = False
    lora: Annotated[
        list[str],
        about("LoRA adapter, NAME=PATH, served as a model of that name; repeat it for several."),
    ] = []
    max_lora_rank: Annotated[int, about("Largest rank of a LoRA adapter.", ge=1, le=4096)] = 64

    def adapters(self) -> dict[str, str]:
        """Path of each adapter of `lora`, by name. Raises ConfigError."""
        found: dict[str, str] = {}
        for setting in self.lora:
            name, equals, path = setting.partition("=")
            if not (name and equals and path):
                raise ConfigError(f"lora: {setting!r} is not of the form NAME=PATH", param="lora")
            if name in found:
                raise ConfigError(f"lora: two adapters are called {name!r}", param="lora")
            found[name] = path
        return found


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The paged KV cache."""

    block_size: Annotated[int, about("Tokens per KV block.", ge=1, le=1024)] = 16
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        about(
            "Type of cached keys and values. auto: int8 for the native kernels where the model's"
            " keys allow it and --dtype is not set, else as --dtype."
        ),
    ] = "auto"
    num_kv_blocks: Annotated[
        Count | None, about("Size of the KV pool in blocks; overrides the two memory flags.")
    ] = None
    kv_cache_memory_mib: Annotated[
        Count | None, about("Size of the KV pool in MiB; overrides --memory-fraction.")
    ] = None
    memory_fraction: Annotated[
        float, about("Share of the free memory that the KV pool may take.", gt=0.0, le=1.0)
    ] = 0.3
    prefix_caching: Annotated[
        bool, about("Keep blocks of finished requests and share equal prefixes.")
    ] = True


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who runs in a step, and the limits of the queue."""

    policy: Annotated[
        str,
        about("fifo, priority, shortest-first, fair-share, or your own as package.module:Class."),
    ] = "fifo"
    max_num_seqs: Annotated[int, about("Most requests that run at once.", ge=1, le=65536)] = 64
    max_num_batched_tokens: Annotated[
        Count | None,
        about(
            "Token budget of one step, prompt and generated tokens together; by default 256 on a "
            "CPU, 2048 on a GPU, and at least twice --max-num-seqs."
        ),
    ] = None
    async_scheduling: Annotated[
        bool,
        about("Plan and launch each step while the one before it still runs, which a GPU allows."),
    ] = False
    max_chunk_tokens: Annotated[
        int,
        about("Most prompt tokens of one request in one step, so that others keep moving.", ge=1),
    ] = 512
    max_waiting: Annotated[
        int, about("Length of the queue; a request beyond it is refused with 429.", ge=1)
    ] = 1024
    max_waiting_tokens: Annotated[
        Count | None,
        about(
            "Most prompt tokens that wait for their first step; beyond it 429. No limit if unset."
        ),
    ] = None
    request_timeout: Annotated[
        float, about("Seconds a request may take in all before it ends with an error.", gt=0.0)
    ] = 600.0
    speculative: Annotated[
        Literal["auto", "none", "ngram", "draft"],
        about(
            "Guess tokens and check several in one step; ngram: what followed the same words;"
            " draft: what --draft-model says, or ngram where that promises more;"
            " auto: ngram with native kernels."
        ),
    ] = "auto"
    draft_model: Annotated[
        str | None,
        about("Small model with the same vocabulary that guesses tokens; named as --model is."),
    ] = None
    num_speculative_tokens: Annotated[
        int, about("Most tokens that are guessed of one request in one step.", ge=1, le=32)
    ] = 8
    speculative_step_tokens: Annotated[
        Count,
        about("Steps of fewer tokens are filled up to so many with guesses, at most."),
    ] = 128
    prompt_lookup_min: Annotated[
        int, about("Fewest last tokens that have to recur for a guess by ngram.", ge=1, le=32)
    ] = 1
    prompt_lookup_max: Annotated[
        int, about("Last tokens that are looked for first by ngram.", ge=1, le=32)
    ] = 2

    def token_budget(self, device: str) -> int:
        """`max_num_batched_tokens`, or what suits the device ("cpu", "cuda:0").

        Open streams, and whoever arrives, wait for the end of a step: it should be no longer than
        it must. A CPU computes 256 rows about as fast per row as any number; a GPU needs more.
        """
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        enough = 2048 if device.startswith("cuda") else 256
        return max(enough, 2 * self.max_num_seqs)  # answers leave half of it to prompts

    def guesses_by(self, kernels: str) -> str:
        """`speculative` as asked for, or where it is known to pay and never to cost.

        Raises:
            ConfigError: it does not work with these kernels.
        """
        if self.speculative == "auto":
            pays = kernels == "native" and not self.async_scheduling
            return "ngram" if pays else "none"
        if self.speculative != "none" and kernels == "triton":
            raise ConfigError(
                "--speculative does not work with --kernels triton yet", param="speculative"
            )
        return self.speculative


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What executes a step."""

    runner: Annotated[
        Literal["torch", "llama-cpp", "fake"],
        about(
            "torch: this engine's own kernels; llama-cpp: llama.cpp's; fake: no model at all "
            "(tests, front-end benchmarks)."
        ),
    ] = "torch"
    device: Annotated[str, about("cpu, cuda, or auto.", pattern="^(auto|cpu|cuda(:[0-9]+)?)$")] = (
        "auto"
    )
    kernels: Annotated[
        Literal["auto", "reference", "native", "triton"],
        about("Implementation of the ops; auto takes the fastest that this machine has."),
    ] = "auto"
    cuda_graphs: Annotated[
        bool,
        about("Replay steps that only decode from CUDA graphs; nothing to do without a GPU."),
    ] = False
    torch_compile: Annotated[
        bool,
        about("Let torch.compile fuse norms, rotations and activations where no kernel does."),
    ] = False
    threads: Annotated[Threads | None, about("Compute threads; all physical cores by default.")] = (
        None
    )
    tensor_parallel_size: Annotated[
        int,
        about(
            "Processes, each with a GPU of its own, that share the model's weights.",
            ge=1,
            le=64,
            extra={"short": "-tp"},
        ),
    ] = 1
    fake_step_ms: Annotated[
        float, about("Milliseconds that a step of the fake runner sleeps.", ge=0.0)
    ] = 0.0


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the engine process is told."""

    model: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    runner: RunnerSettings = RunnerSettings()

    @classmethod
    def of(cls, **settings: Any) -> EngineConfig:
        """Build from flat names, `EngineConfig.of(model="x.gguf", max_num_seqs=8)`.

        Raises ConfigError naming the setting that is unknown or out of range.
        """
        return compose(cls, settings)

    def draft(self) -> ModelSettings | None:
        """Of the draft model, which is held in memory as the model is; None without one.

        Raises ConfigError where only one of the two settings that belong together is there, or
        where the model is divided among ranks.
        """
        name, wanted = self.scheduler.draft_model, self.scheduler.speculative == "draft"
        if wanted and name is None:
            raise ConfigError("--speculative draft needs a --draft-model", param="draft_model")
        if name is None:
            return None
        if not wanted:
            raise ConfigError("--draft-model is for --speculative draft", param="draft_model")
        if self.runner.tensor_parallel_size > 1:
            raise ConfigError(
                "--draft-model does not work with --tensor-parallel-size yet", param="draft_model"
            )
        return msgspec.structs.replace(
            self.model, model=name, served_model_name=None, max_model_len=None, chat_template=None
        )
