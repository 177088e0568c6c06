"""A runner without a model, for tests and for measuring everything around a model.

It keeps a real paged cache, of one number per slot: the digest of all tokens up to there. A step
reads the digest of the previous position *through the block table*, mixes in the tokens of its
chunk, writes the new digests to their slots and derives the next token from the last one. So an
answer is right only if every block the scheduler handed out, shared or found again is right:
`expected_answer` says, without any of that, what it has to be. A request with a grammar gets any of
the tokens that the grammar allows, and the end of its answer as soon as it may end.
Vectors are made of the digests too, as `expected_embedding` says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pellucid.config import EngineConfig
from pellucid.grammar.compiler import Matcher, bitmask_words
from pellucid.grammar.errors import CANNOT_FOLLOW, GrammarError
from pellucid.messages import EngineInfo, Pooling, TokenLogprobs
from pellucid.runner.base import Chunk, KVCapacity, NewRow, StepPlan, StepResult
from pellucid.sampling_params import SamplingParams

HIDDEN_SIZE = 32

_MASK = (1 << 64) - 1


def _mix(digest: int, value: int) -> int:
    """One round of splitmix64 (Steele, Lea and Flood, 2014)."""
    z = (digest + value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _next_token(digest: int, seed: int, vocab: range) -> int:
    return vocab[_mix(digest, seed) % len(vocab)]


def expected_answer(
    prompt: list[int], num_tokens: int, *, seed: int = 0, vocab: range = range(100, 1000)
) -> list[int]:
    """The tokens a FakeRunner must answer `prompt` with. Independent of blocks and batches."""
    digest = 0
    for token in prompt:
        digest = _mix(digest, token)
    answer: list[int] = []
    for _ in range(num_tokens):
        answer.append(_next_token(digest, seed, vocab))
        digest = _mix(digest, answer[-1])
    return answer


def expected_embedding(prompt: list[int], pooling: Pooling) -> bytes:
    """The vector a FakeRunner must make of `prompt`, as `TokenDelta.embedding` has it."""
    digest, states = 0, []
    for token in prompt:
        digest = _mix(digest, token)
        states.append(_state(digest))
    return _pooled(states if pooling == "mean" else states[-1:])


def _state(digest: int) -> NDArray[np.float32]:
    """A hidden state: numbers from -1 to 1."""
    parts = [_mix(digest, column) / (1 << 63) - 1.0 for column in range(HIDDEN_SIZE)]
    return np.array(parts, np.float32)


def _pooled(states: list[NDArray[np.float32]]) -> bytes:
    total = np.zeros(HIDDEN_SIZE, np.float32)
    for state in states:
        total += state
    return (total / np.float32(len(states))).astype("<f4").tobytes()


@dataclass(slots=True)
class _Row:
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    matcher: Matcher | None
    pooling: Pooling | None
    block_table: list[int] = field(default_factory=list)
    states: list[NDArray[np.float32]] = field(default_factory=list)  # to be pooled


@dataclass(slots=True)
class _Done:
    step: StepResult

    def result(self) -> StepResult:
        return self.step


class FakeRunner:
    """Implements `Runner`. `step_seconds` makes each step take that long, asleep."""

    drafter = None

    def __init__(
        self,
        *,
        num_blocks: int = 4096,
        block_size: int = 16,
        max_model_len: int = 8192,
        vocab_size: int = 49152,
        answer_vocab: range = range(100, 1000),
        eos_token_ids: tuple[int, ...] = (2,),
        step_seconds: float = 0.0,
        name: str = "fake",
    ) -> None:
        self._info = EngineInfo(
            model=name,
            architecture="fake",
            dtype="none",
            device="none",
            kernels="none",
            vocab_size=vocab_size,
            max_model_len=min(max_model_len, num_blocks * block_size),
            eos_token_ids=list(eos_token_ids),
            num_kv_blocks=num_blocks,
            block_size=block_size,
            hidden_size=HIDDEN_SIZE,
        )
        self._answer_vocab = answer_vocab
        self._step_seconds = step_seconds
        self._cache = [0] * (num_blocks * block_size)
        self._rows: dict[str, _Row] = {}

    @classmethod
    def from_config(cls, config: EngineConfig) -> FakeRunner:
        return cls(
            num_blocks=config.cache.num_kv_blocks or 4096,
            block_size=config.cache.block_size,
            max_model_len=config.model.max_model_len or 8192,
            step_seconds=config.runner.fake_step_ms / 1e3,
            name=config.model.served_model_name or "fake",
        )

    def info(self) -> EngineInfo:
        return self._info

    def kv_capacity(self) -> KVCapacity:
        return KVCapacity(self._info.num_kv_blocks, self._info.block_size, 8)

    def execute(self, plan: StepPlan) -> _Done:
        begin = time.monotonic()
        for request_id in plan.dropped:
            self._rows.pop(request_id, None)
        for new in plan.new_rows:
            if new.request_id in self._rows:
                raise ValueError(f"{new.request_id} has a row already")
            self._rows[new.request_id] = _row(new)
        errors: dict[str, str] = {}
        tokens = [self._compute(chunk, errors) for chunk in plan.chunks]
        if self._step_seconds:
            time.sleep(self._step_seconds)
        rows = [self._rows[chunk.request_id] for chunk in plan.chunks]
        return _Done(
            StepResult(
                token_ids=tokens,
                logprobs=[
                    _logprobs(row.sampling.logprobs, ids)
                    for row, ids in zip(rows, tokens, strict=True)
                ],
                prompt_logprobs=[
                    _logprobs(row.sampling.prompt_logprobs, _prompt_part(row, chunk))
                    for row, chunk in zip(rows, plan.chunks, strict=True)
                ],
                forward_seconds=time.monotonic() - begin,
                embeddings={
                    chunk.request_id: _pooled(row.states)
                    for row, chunk in zip(rows, plan.chunks, strict=True)
                    if row.pooling and chunk.start + chunk.num_tokens == row.num_prompt_tokens
                },
                errors=errors,
            )
        )

    def close(self) -> None:
        self._rows.clear()

    def _compute(self, chunk: Chunk, errors: dict[str, str]) -> list[int]:
        if chunk.num_tokens < 1:
            raise ValueError(f"{chunk} computes nothing")
        row = self._rows[chunk.request_id]
        row.block_table.extend(chunk.new_block_ids)
        digest = self._cache[self._slot(row, chunk.start - 1)] if chunk.start else 0
        digests = []
        tokens = row.token_ids + chunk.drafts
        for position in range(chunk.start, chunk.start + chunk.num_tokens):
            digest = _mix(digest, tokens[position])
            digests.append(digest)
            self._cache[self._slot(row, position)] = digest
            if row.pooling == "mean" or (row.pooling and position + 1 == row.num_prompt_tokens):
                row.states.append(_state(digest))
        if not chunk.samples:
            return []
        drawn: list[int] = []
        for state, draft in zip(
            digests[-1 - len(chunk.drafts) :], [*chunk.drafts, None], strict=True
        ):
            token = self._draw(state, row, chunk.request_id, errors)
            row.token_ids.append(0 if token is None else token)  # the next step may be planned
            if token is None:
                return []
            drawn.append(token)
            if token != draft:
                break
        return drawn

    def _draw(self, digest: int, row: _Row, request_id: str, errors: dict[str, str]) -> int | None:
        """The next token; None, and why, where the grammar allows none."""
        if row.matcher is None:
            return _next_token(digest, row.sampling.seed or 0, self._answer_vocab)
        try:
            return self._next_allowed(digest, row.sampling.seed or 0, row.matcher)
        except GrammarError as error:
            errors[request_id] = f"{CANNOT_FOLLOW}: {error}"
            return None

    def _next_allowed(self, digest: int, seed: int, matcher: Matcher) -> int:
        mask = np.zeros(bitmask_words(self._info.vocab_size), np.uint32)
        matcher.fill(mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
        ends = [token for token in self._info.eos_token_ids if token in allowed]
        choices = ends or allowed
        if not choices:
            raise GrammarError("nothing may follow")
        token: int = choices[_mix(digest, seed) % len(choices)]
        matcher.accept([token])
        return token

    def _slot(self, row: _Row, position: int) -> int:
        size = self._info.block_size
        return row.block_table[position // size] * size + position % size


def _row(new: NewRow) -> _Row:
    generated = new.token_ids[new.num_prompt_tokens :]
    matcher = None if new.grammar is None else new.grammar.matcher(generated)
    return _Row(new.token_ids, new.num_prompt_tokens, new.sampling, matcher, new.pooling)


def _prompt_part(row: _Row, chunk: Chunk) -> list[int]:
    end = min(chunk.start + chunk.num_tokens + 1, row.num_prompt_tokens)
    return row.token_ids[chunk.start + 1 : end]


def _logprobs(count: int | None, token_ids: list[int]) -> list[TokenLogprobs] | None:
    if count is None:
        return None
    size = max(count, 0)
    return [
        TokenLogprobs(
            token_id=token,
            logprob=-0.5,
            rank=1,
            top_ids=[token + k for k in range(size)],
            top_logprobs=[-0.5 - k for k in range(size)],
        )
        for token in token_ids
    ]
