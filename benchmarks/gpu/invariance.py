"""Greedy tokens and log probabilities of a whole model: the same bits however they are computed.

Each way of computing is compared with itself: all prompts together, in chunks, some alone, and
with so little memory that requests are preempted. Ways that replay CUDA graphs and plan ahead are
compared with the same kernels launched op by op, too. Answers differ in length, so that steps go
through several buckets of rows, and prompts lie on both sides of the first bound on a context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.gpu import models
from benchmarks.gpu.context import Context
from pellucid.kernels.reference import ReferenceOps
from pellucid.sampling_params import SamplingParams

SHORT = tuple(range(3, 27, 2))
PROMPTS = (*SHORT, 1, 64, 130, 300, 1005, 1400)  # 1005 grows beyond 1024
ALONE = (3, 25, 1, 300, 1005, 1400)
MOST_PREEMPTED = 300  # the longest prompt of those that compete for memory
TINY_PROMPTS = (1, 14, 17)
FIRST_ANSWER, LONGER = 8, 2  # tokens of the first answer, and by how many each is longer

Answers = dict[str, list[object]]  # by prompt: token, log probability, token ...


@dataclass(frozen=True)
class Way:
    """How a model is computed."""

    name: str
    dense: bool = False  # products with float weights by Triton, for which the promise holds
    reference: bool = False
    replayed: bool = False
    kv_cache_dtype: str = "auto"
    like: str = ""  # the way that has to give the same bits


WAYS = (
    Way("dense=1", dense=True),
    Way("dense=1, replayed", dense=True, replayed=True, like="dense=1"),
    Way("dense=1, int8 KV", dense=True, kv_cache_dtype="int8"),
    Way(
        "dense=1, int8 KV, replayed",
        dense=True,
        replayed=True,
        kv_cache_dtype="int8",
        like="dense=1, int8 KV",
    ),
    Way("cuBLAS"),  # shows what the promise does not reach
    Way("reference", reference=True),
)


def invariance(context: Context) -> None:
    """Every way in turn; one that fails leaves nothing for those like it to be compared with."""
    config = models.TINY if context.tiny else models.QWEN3_06B
    together: dict[str, Answers] = {}
    for way in WAYS:
        ops = ReferenceOps() if way.reference else _triton(context, way)
        if ops is not None:
            context.attempt(
                way.name, lambda way=way, ops=ops: _compare(context, config, way, ops, together)
            )


def _triton(context: Context, way: Way) -> ReferenceOps | None:
    return context.triton(dense=1) if way.dense else context.triton()


def _compare(
    context: Context,
    config: models.ModelConfig,
    way: Way,
    ops: ReferenceOps,
    together: dict[str, Answers],
) -> dict[str, Any]:
    """Whether the answers are equal; `together` gets those of this way."""
    lengths = TINY_PROMPTS if context.tiny else PROMPTS
    runner, settings = models.make_runner(
        *(config, ops, context.device, context.dtype),
        tokens=8192,
        longest=2048,
        max_num_seqs=32,
        replayed=way.replayed,
        kv_cache_dtype=way.kv_cache_dtype,
    )
    prompts = {
        f"p{length}": [(37 * i + 11 * length) % config.vocab_size for i in range(length)]
        for length in lengths
    }
    answers = _Answers(runner, settings, prompts)
    try:
        every = together[way.name] = answers.of(list(prompts))
        competing = [name for name in prompts if len(prompts[name]) <= MOST_PREEMPTED]
        # Room for the prompts and a token each: whoever wants another block takes it from someone.
        blocks = sum(len(prompts[name]) // settings.cache.block_size + 1 for name in competing)
        preempted = answers.of(competing, num_blocks=blocks)
        chosen = [f"p{length}" for length in lengths if context.tiny or length in ALONE]
        found: dict[str, Any] = {
            "alone = together": all(answers.of([name])[name] == every[name] for name in chosen),
            "chunked = together": answers.of(list(prompts), budget=64) == every,
            "preempted = together": all(preempted[name] == every[name] for name in competing),
            "preemptions": answers.preemptions,
            "values compared": sum(map(len, every.values())),
            "buckets": models.captured(runner),
        }
    finally:
        runner.close()
    if way.like:
        found["replayed = launched"] = every == together[way.like]
    if not answers.preemptions:
        raise AssertionError(f"no request was preempted: {found}")
    if way.replayed and context.device.type == "cuda" and not context.tiny:
        rows, contexts = (set(part) for part in zip(*found["buckets"], strict=True))
        if len(rows) < 3 or len(contexts) < 2:
            raise AssertionError(f"fewer buckets than were meant to be compared: {found}")
    return found


class _Answers:
    """Runs prompts through engines over one runner."""

    def __init__(
        self,
        runner: models.TorchRunner,
        settings: models.EngineConfig,
        prompts: dict[str, list[int]],
    ) -> None:
        self._runner, self._settings, self._prompts = runner, settings, prompts
        self._lengths = {name: FIRST_ANSWER + LONGER * i for i, name in enumerate(prompts)}
        self._runs = 0
        self.preemptions = 0  # of all runs

    def of(
        self, names: list[str], *, budget: int | None = None, num_blocks: int | None = None
    ) -> Answers:
        """The answers to these prompts, in steps of `budget` tokens, with so many KV blocks."""
        core = models.engine(self._runner, self._settings, budget, num_blocks)
        self._runs += 1
        tag = f"{self._runs}-"
        for name in names:
            sampling = SamplingParams(
                max_tokens=self._lengths[name], temperature=0.0, ignore_eos=True, logprobs=0
            )
            core.add(models.request(tag + name, self._prompts[name], sampling))
        found: Answers = {name: [] for name in names}
        while core.has_work:
            for delta in core.step().deltas:
                if delta.error is not None:
                    raise RuntimeError(f"{delta.request_id}: {delta.error}")
                own = found[delta.request_id.removeprefix(tag)]
                own += [*delta.token_ids, *(entry.logprob for entry in delta.logprobs or ())]
        self.preemptions += core.scheduler.counters.preemptions
        return found
