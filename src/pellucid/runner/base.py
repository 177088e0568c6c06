"""What a step is, and what executes it.

The scheduler speaks to a runner in differences: a request's tokens and blocks are told once, when
its row is made; afterwards only what was added. A runner therefore keeps one row per running
request, and no step costs work proportional to the length of a context.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pellucid.messages import EngineInfo, Pooling, TokenLogprobs
from pellucid.sampling_params import SamplingParams
from pellucid.spec.drafter import Drafter

if TYPE_CHECKING:
    from pellucid.grammar.compiler import Grammar


@dataclass(slots=True)
class NewRow:
    """A request that enters (or re-enters, after preemption) the running set."""

    request_id: str
    token_ids: list[int]  # prompt, then what was generated before a preemption
    num_prompt_tokens: int
    sampling: SamplingParams
    grammar: Grammar | None = None  # what the generated tokens have to follow
    pooling: Pooling | None = None  # it ends with a vector, and none of its chunks samples
    adapter: int | None = None  # number of the adapter that changes the model for it


@dataclass(slots=True)
class Chunk:
    """One request's share of a step: tokens [start, start + num_tokens) of its sequence.

        token_ids  |---------- computed ----------|==== this step ====|.... later ....|
                   0                              start               start+num_tokens

    `samples` is true when the chunk reaches the last known token, so that its logits choose
    the next. `drafts` are guesses that follow that token, the last of the chunk's `num_tokens`: of
    those that turn out right, the result has them all, and one token more.
    """

    request_id: str
    start: int
    num_tokens: int
    samples: bool
    new_block_ids: list[int]  # to append to the row's block_table before this step
    drafts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class StepPlan:
    """What a runner needs for one step, in this order: drop rows, make rows, compute chunks."""

    step: int
    dropped: list[str] = field(default_factory=list)  # finished, aborted or preempted
    new_rows: list[NewRow] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)  # a row's first chunk holds its whole table

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


@dataclass(slots=True)
class StepResult:
    """Lists are parallel to `StepPlan.chunks`; a chunk that does not sample has no tokens.

    The runner appends sampled tokens to its rows itself. `prompt_logprobs` holds, for a request
    that asked, the entries of prompt positions start+1 .. start+num_tokens that exist (position 0
    has none).
    """

    token_ids: list[list[int]]
    logprobs: list[list[TokenLogprobs] | None]
    prompt_logprobs: list[list[TokenLogprobs] | None]
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)  # request id -> why it cannot go on
    # Request id -> float32 vector, of those that pool and whose prompt was computed to its end.
    embeddings: dict[str, bytes] = field(default_factory=dict)
    # Blocks that a runner could not keep: they are no longer to be found by name.
    lost_blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """The KV pool that a runner holds."""

    num_blocks: int
    block_size: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter that was loaded."""

    digest: bytes  # SHA-256 of all that it does: what was computed with it bears this mark
    rank: int  # the largest
    num_parameters: int


class PendingStep(Protocol):
    """A step whose forward pass was launched; on a GPU it may still be running."""

    def result(self) -> StepResult:
        """Sample and return."""
        ...


class Runner(Protocol):
    """Executes step plans; the only owner of the models and of device memory."""

    @property
    def drafter(self) -> Drafter | None:
        """What guesses tokens, if this runner has anything that does.

        A draft model's K/V lie in blocks of the same numbers.
        """
        ...

    def info(self) -> EngineInfo: ...

    def kv_capacity(self) -> KVCapacity: ...

    def execute(self, plan: StepPlan) -> PendingStep:
        """Launch a step; the one before may still lack its result.

        Its tokens are then the runner's to know: a chunk of this step may hold one of them.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class AdaptableRunner(Runner, Protocol):
    """A runner that knows LoRA adapters: rows may name one."""

    def load_adapter(self, adapter: int, path: str) -> AdapterInfo:
        """Read an adapter and keep it under a number. Raises ModelError."""
        ...

    def unload_adapter(self, adapter: int) -> None:
        """Forget an adapter that no request has any more."""
        ...
