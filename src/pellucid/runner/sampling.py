"""Sampling parameters of the running requests, kept by row, and their use on a step's logits."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.messages import TokenLogprobs
from pellucid.runner.base import NewRow
from pellucid.runner.batch import Batch, Ints, entries_of
from pellucid.runner.device import Fetched
from pellucid.runner.grammar import Followed, GrammarRows
from pellucid.sample.backends import Sampler
from pellucid.sample.constraints import Constraints
from pellucid.sample.logprobs import Described, Logprobs, fetched
from pellucid.sample.penalties import Penalties, TokenCounts
from pellucid.sample.sampler import SamplingColumns
from pellucid.sample.transfer import to_device
from pellucid.sampling_params import NOTHING_LEFT, SamplingParams

if TYPE_CHECKING:
    from pellucid.runner.executor import Likeliest

Value = TypeVar("Value")


@dataclass(slots=True)
class Choice:
    """The outcome for each row of logits, in their order."""

    token_ids: Ints
    logprobs: list[TokenLogprobs | None]  # for rows whose request asked
    errors: dict[int, str]  # by place: why there is no token


class Draw:
    """Tokens that were drawn for rows, and perhaps are still on their way from the device.

    What was drawn on the host needs its logits no longer; those on a device are kept until it came.
    """

    def __init__(
        self,
        rows: Ints,
        places: Ints,
        token_ids: Ints | Tensor,
        failed: NDArray[np.bool_] | Tensor,
        logits: Any,
        logprobs_of: list[tuple[int, int]],
        described: Described | Logprobs | None,
    ) -> None:
        self.rows = rows
        self.places = places  # in their rows' tokens
        self.logprobs_of = logprobs_of  # places of the rows that want them; how many alternatives
        self.logprobs: Logprobs | None = None  # of these rows
        self.errors: dict[int, str] = {}  # by place: why there is no token
        self.token_ids: Ints
        self.failed: NDArray[np.bool_]
        self.on_device: Tensor | None = None  # until the tokens are here
        # What goes on with the tokens, by place: of the rows as they were when these were drawn,
        # since a row may change hands before its token comes.
        self.counts: list[tuple[int, TokenCounts]] = []
        self.followed: list[tuple[int, Followed]] = []
        if isinstance(token_ids, np.ndarray) and isinstance(failed, np.ndarray):
            assert not isinstance(described, Described)
            self._take(token_ids, failed, described, logits)
        elif isinstance(token_ids, Tensor) and isinstance(failed, Tensor):
            assert not isinstance(described, Logprobs)
            self.on_device = token_ids
            self._logits = logits
            more = [] if described is None else described.tensors()
            self._fetched = Fetched([token_ids, failed, *more])

    def _take(
        self, token_ids: Ints, failed: NDArray[np.bool_], found: Logprobs | None, logits: Any
    ) -> None:
        self.token_ids, self.failed, self.logprobs = token_ids, failed, found
        if failed.any():
            self.errors = {i: _why_failed(logits, i) for i in failed.nonzero()[0].tolist()}

    def wait(self) -> None:
        """Until all is here, and what goes on with the tokens has them."""
        if self.on_device is not None:
            token_ids, failed, *described = self._fetched.wait()
            self._take(token_ids, failed, fetched(*described) if described else None, self._logits)
            self.on_device = self._logits = None
        for place, counts in self.counts:
            if not self.failed[place]:
                counts.add(int(self.token_ids[place]))
        for place, followed in self.followed:
            if not self.failed[place]:
                followed.accept(int(self.token_ids[place]))
            if followed.broken is not None:
                self.errors[place] = followed.broken
        self.counts, self.followed = [], []


class RowSampling:
    """How each row of a `Batch` samples. Row numbers are the batch's."""

    def __init__(
        self,
        sampler: Sampler[Any],
        max_num_seqs: int,
        eos_token_ids: list[int],
        vocab_size: int,
    ) -> None:
        self._sampler = sampler
        self._eos_token_ids = eos_token_ids
        self._columns = SamplingColumns(
            temperature=np.zeros(max_num_seqs, np.float32),
            top_k=np.zeros(max_num_seqs, np.int64),
            top_p=np.ones(max_num_seqs, np.float32),
            min_p=np.zeros(max_num_seqs, np.float32),
            seed=np.zeros(max_num_seqs, np.int64),
            position=np.zeros(max_num_seqs, np.int64),
        )
        self._grammars = GrammarRows(max_num_seqs, vocab_size)
        # Most requests need none of these.
        self._penalties: dict[int, Penalties] = {}
        self._constraints: dict[int, Constraints] = {}
        self._num_logprobs: dict[int, int] = {}
        self._num_prompt_logprobs: dict[int, int] = {}
        self._last: Draw | None = None  # whose tokens may not have gone on yet

    def add(self, row: int, new: NewRow) -> None:
        params, columns = new.sampling, self._columns
        columns.temperature[row] = 0.0 if params.greedy else params.temperature
        columns.top_k[row] = params.top_k
        columns.top_p[row] = params.top_p
        columns.min_p[row] = params.min_p
        columns.seed[row] = _seed(new)
        if params.logprobs is not None:
            self._num_logprobs[row] = params.logprobs
        if params.prompt_logprobs is not None:
            self._num_prompt_logprobs[row] = params.prompt_logprobs
        if _penalises(params):
            # Without a repetition penalty the prompt's tokens do not count.
            prompt = new.token_ids[: new.num_prompt_tokens]
            generated = new.token_ids[new.num_prompt_tokens :]
            counts = TokenCounts(prompt if params.repetition_penalty != 1.0 else [], generated)
            self._penalties[row] = Penalties(
                counts,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        self._grammars.add(row, new)
        constraints = self._constraints_of(params)
        if constraints:
            self._constraints[row] = constraints

    def drop(self, row: int) -> None:
        """Forget a row; one that was never added is fine."""
        self._grammars.drop(row)
        for table in (
            self._penalties,
            self._constraints,
            self._num_logprobs,
            self._num_prompt_logprobs,
        ):
            table.pop(row, None)

    def prompt_logprobs(self, rows: Ints) -> list[tuple[int, int]]:
        """(place, alternatives per token) where a request asked for prompt logprobs."""
        return entries_of(self._num_prompt_logprobs, rows)

    def draw(self, logits: Any, rows: Ints, batch: Batch) -> Draw:
        """Draw the next token of each row from its float32 logits [n, V], which are used up.

        They are what the sampler takes, a tensor or an array. Where it leaves the tokens on the
        device, so does this; those that were drawn before have to be known by now, or are waited
        for.
        """
        if self._last is not None:
            self._last.wait()
        wanted = entries_of(self._num_logprobs, rows)
        counts = _counts(wanted, logits.shape[1])
        logprobs_of = [(i, count) for (i, _), count in zip(wanted, counts, strict=True)]
        raw: Any = logits
        chosen: Any = None  # places of the rows that want logprobs, if those are not all
        edits = self._penalties or self._constraints or self._grammars
        if logprobs_of and (len(logprobs_of) < len(rows) or edits):
            places = np.array([i for i, _ in logprobs_of])
            chosen = to_device(places, logits.device) if isinstance(logits, Tensor) else places
            raw = logits[chosen]
        self._edit(logits, rows, batch)
        self._grammars.constrain(logits, rows, self._sampler)
        self._columns.position = batch.num_tokens
        token_ids, failed = self._sampler.sample(logits, self._columns, rows)
        places = batch.num_tokens[rows]
        described: Described | Logprobs | None = None
        if logprobs_of:
            # At once: a device would do later what is asked later, behind the next step, and the
            # host's logits are that step's by then.
            most = max(counts)
            if isinstance(token_ids, Tensor):
                own = token_ids if chosen is None else token_ids[chosen]
                described = self._sampler.describe(raw, own, most)
            else:
                described = self._sampler.logprobs(raw, token_ids[[i for i, _ in wanted]], most)
        drawn = Draw(rows, places, token_ids, failed, logits, logprobs_of, described)
        drawn.counts = [(i, penalties.counts) for i, penalties in entries_of(self._penalties, rows)]
        drawn.followed = self._grammars.of(rows)
        self._last = drawn if drawn.counts or drawn.followed else None
        return drawn

    def is_plain(self, rows: Ints) -> bool:
        """Whether of each row's logits only the likeliest token is asked for."""
        tables: tuple[Mapping[int, object], ...] = (
            self._penalties,
            self._constraints,
            self._num_logprobs,
        )
        return (
            not self._columns.temperature[rows].any()
            and not any(entries_of(table, rows) for table in tables)
            and not self._grammars.of(rows)
        )

    def take(self, found: Likeliest, rows: Ints, batch: Batch) -> Draw:
        """What `draw` would have drawn from logits of plain rows."""
        places = batch.num_tokens[rows]
        return Draw(rows, places, found.token_ids, found.failed, None, [], None)

    def choose(self, drawn: Draw) -> Choice:
        """What was drawn.

        Logprobs are those of the model's own logits, before any of the request's parameters.
        """
        drawn.wait()
        logprobs: list[TokenLogprobs | None] = [None] * len(drawn.rows)
        if drawn.logprobs is not None:
            wanted, counts = map(list, zip(*drawn.logprobs_of, strict=True))
            entries = _entries(drawn.logprobs, drawn.token_ids[wanted], counts)
            for i, entry in zip(wanted, entries, strict=True):
                logprobs[i] = entry
        return Choice(drawn.token_ids, logprobs, drawn.errors)

    def describe(self, logits: Any, token_ids: Ints, num_top: list[int]) -> list[TokenLogprobs]:
        """Logprobs of a token per row of raw logits [n, V]; `num_top` alternatives, -1 for all."""
        counts = _counts(list(enumerate(num_top)), logits.shape[1])
        return _entries(self._sampler.logprobs(logits, token_ids, max(counts)), token_ids, counts)

    def _edit(self, logits: Any, rows: Ints, batch: Batch) -> None:
        """Bias, then penalties, then bans, so that a ban is final."""
        places, constraints = _split(entries_of(self._constraints, rows))
        if places:
            self._sampler.bias(logits, places, constraints)
        penalised, penalties = _split(entries_of(self._penalties, rows))
        if penalised:
            self._sampler.penalise(logits, penalised, rows[penalised].tolist(), penalties)
        if places:
            banned = []
            for i, each in zip(places, constraints, strict=True):
                known = batch.known_tokens(rows[i])
                num_generated = len(known) - int(batch.num_prompt_tokens[rows[i]])
                banned.append(each.banned(known, num_generated))
            self._sampler.ban(logits, places, constraints, banned)

    def _constraints_of(self, params: SamplingParams) -> Constraints:
        eos = [] if params.ignore_eos else self._eos_token_ids
        return Constraints(
            logit_bias=params.logit_bias,
            allowed_token_ids=params.allowed_token_ids,
            bad_words=params.bad_words_token_ids,
            end_token_ids=[*eos, *params.stop_token_ids],
            min_tokens=params.min_tokens,
        )


def _split(found: list[tuple[int, Value]]) -> tuple[list[int], list[Value]]:
    return [place for place, _ in found], [entry for _, entry in found]


def _counts(logprobs_of: list[tuple[int, int]], vocab_size: int) -> list[int]:
    """Alternatives that are wanted; -1 is all."""
    return [vocab_size if count < 0 else count for _, count in logprobs_of]


def _entries(found: Logprobs, token_ids: Ints, counts: list[int]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(
            token_id=int(token_ids[i]),
            logprob=float(found.chosen[i]),
            rank=int(found.rank[i]),
            top_ids=found.top_ids[i, :count].tolist(),
            top_logprobs=found.top[i, :count].tolist(),
        )
        for i, count in enumerate(counts)
    ]


def _penalises(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )


def _seed(new: NewRow) -> int:
    """The request's seed; without one, a number that survives its preemption."""
    seed = new.sampling.seed
    return zlib.crc32(new.request_id.encode()) if seed is None else seed


def _why_failed(logits: Any | None, row: int) -> str:
    """There are no logits where nothing can have taken tokens away."""
    if logits is not None and (logits[row] == -np.inf).all():
        return NOTHING_LEFT
    return "the model's logits are not finite"
