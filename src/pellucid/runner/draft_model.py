"""A small model that guesses what the large one will say (Leviathan 2023; Chen 2023).

It has K/V of its own, in blocks of the same numbers as the large one's: a request's `block_table`
and a block's name serve both. A request's counter, `num_computed`, chases its known tokens as the
engine's does, and whatever is missing is computed before the next guess, in one chunk: a prompt,
what was said while there was no room for guesses, the last guess if all were right. So a request
that is never guessed for costs nothing here. Nor does one that says little: a text is read if what
is still to be said should save what that takes. How much that is nobody knows; as lengths of
answers are spread, the more was said, the more is to come.

    token_ids      |------- computed -------|== catching up ==|  guesses  |
                                            num_computed      n           n + count
    computed next                           |-----------------|--------|

The last guess is nobody's input, so its K/V are not there. Those of a wrong guess, and of all
behind it, stay in the blocks until a token that is known is computed in their place: attention ends
at the position that it computes, and reads nothing before that was written for this text. Blocks
are known to hold a text by the engine's names for them, from when they were filled with known
tokens until somebody writes to them again.

Guesses are drawn as the answer is, with the same temperature and the same random numbers, so that
where the two models agree in their probabilities they mostly agree in the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from pellucid.errors import ModelError
from pellucid.runner.base import Chunk, NewRow
from pellucid.runner.batch import Batch, Ints
from pellucid.runner.executor import Executor
from pellucid.runner.sampling import RowSampling
from pellucid.runner.steps import WARM_UP_TOKENS
from pellucid.sampling_params import SamplingParams
from pellucid.spec.drafter import Wanted
from pellucid.spec.length import NOTHING, Acceptance, Offer, StepTimes, best_offer

FIRST_TO_COME = 64  # tokens that an answer is believed to have before it; with each said, one more
SAVED_BY_READING = 2.0  # a text is read if it promises so much of what that takes: it is a promise


@dataclass(slots=True)
class _Text:
    """What is known of a request that was guessed for."""

    row: int  # of the batch
    num_known: int = 0  # tokens when it was last asked for
    num_computed: int = 0  # tokens whose K/V are there; guesses may be among them
    num_blocks: int = 0  # told to the batch
    num_named: int = 0  # blocks said to hold its text
    guesses: list[int] = field(default_factory=list)


class DraftModel:
    """Implements `Drafter`.

    Args:
        executor: of the small model.
        vocab_sizes: of the small and of the large model; tokens that only one has end a guess.
        max_model_len: of the small model.
        max_rows: of one step of `executor`.
        times: what steps of the two models take.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        vocab_sizes: tuple[int, int],
        max_model_len: int,
        max_num_seqs: int,
        block_size: int,
        max_rows: int,
        times: StepTimes,
    ) -> None:
        self._executor = executor
        self._num_readable, self._num_sayable = vocab_sizes
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._max_rows = max_rows
        self.times = times
        self._batch = Batch(max_num_seqs, max_model_len, block_size)
        self._sampling = RowSampling(executor.sampler, max_num_seqs, [], self._num_readable)
        self._texts: dict[str, _Text] = {}
        self._acceptances: dict[str, Acceptance] = {}
        self._held: dict[int, bytes] = {}  # block -> name of the text that its K/V are of

    # ---- Drafter

    def offer(self, wanted: Wanted) -> Offer:
        acceptance = self._acceptance(wanted)
        num_known = len(wanted.token_ids)
        most = max(0, min(wanted.count, self._max_model_len - num_known))
        ratio = partial(self.times.ratio, wanted.num_decoding)
        offer = best_offer(repeat(acceptance.value, most), ratio)
        if offer.length == 0:
            acceptance.forget()
            return NOTHING
        price = self.times.reading(wanted.num_running, num_known - self._num_computed(wanted))
        to_come = min(wanted.room, num_known - wanted.num_prompt_tokens + FIRST_TO_COME)
        if SAVED_BY_READING * price > to_come * (1.0 - 1.0 / offer.rate):
            return NOTHING
        return offer

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        # Each offer counts on all who decode to share what a step of this model takes, as deep as
        # it goes: but some have not been read yet, some are guessed for by others or less deep.
        guesses = [(each.count, self._acceptance(each).value) for each in wanted]
        depth = self.times.best_depth(wanted[0].num_decoding, guesses)
        if depth == 0:
            return [[] for _ in wanted]
        return self._guesses([replace(each, count=min(each.count, depth)) for each in wanted])

    def _guesses(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        ready = self._catch_up(wanted)
        for depth in range(1, max((each.count for each in ready), default=0)):
            ready = [each for each in ready if self._goes_on(each, depth)]
            if not ready:
                break
            self._guess(ready, [self._chunk(each, len(each.token_ids) + depth) for each in ready])
        for each in wanted:
            self._name_blocks(each)
        return [list(self._texts[each.request_id].guesses) for each in wanted]

    def _acceptance(self, wanted: Wanted) -> Acceptance:
        return self._acceptances.setdefault(wanted.request_id, Acceptance())

    def learn(self, request_id: str, num_proposed: int, num_accepted: int) -> None:
        if request_id in self._acceptances:
            self._acceptances[request_id].learn(num_proposed, num_accepted)

    def took(self, num_tokens: int, seconds: float) -> None:
        self.times.learn(num_tokens, seconds)

    def forget(self, request_id: str) -> None:
        self._acceptances.pop(request_id, None)
        if self._texts.pop(request_id, None) is not None:
            row = self._batch.drop(request_id)
            assert row is not None
            self._sampling.drop(row)

    # ---- known tokens

    def _catch_up(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """Compute what is missing of the known tokens, as far as a step reaches.

        Returns those of whom all is computed now; each has its first guess.
        """
        budget = self._max_rows
        chunks, ready, writing = [], [], set[int]()
        for each in wanted:
            text = self._follow(each)
            known = len(each.token_ids)
            begin = text.num_computed // self._block_size
            end = min(known, text.num_computed + budget)
            # A prompt that several share is computed once; the others find its blocks.
            if each.block_table[begin] in writing or end == text.num_computed:
                continue
            if max(each.token_ids[text.num_computed : end]) >= self._num_readable:
                continue
            writing.update(each.block_table[begin : -(-end // self._block_size)])
            budget -= end - text.num_computed
            chunks.append(self._chunk(each, end))
            if end == known:
                ready.append(each)
        if chunks:
            self._guess(ready, chunks)
        return ready

    def _follow(self, each: Wanted) -> _Text:
        """Take in what was said since; of the guesses, those that were right stay computed."""
        text = self._texts.get(each.request_id)
        if text is None:
            text = self._texts[each.request_id] = _Text(self._add_row(each))
        said = np.array(each.token_ids[text.num_known :], np.int64)
        guessed = self._batch.token_ids[text.row, text.num_known : text.num_computed]
        common = min(len(said), len(guessed))
        wrong = np.flatnonzero(said[:common] != guessed[:common])
        right = int(wrong[0]) if len(wrong) else common
        self._batch.rewrite(text.row, text.num_known, said)
        text.num_computed = min(text.num_computed, text.num_known + right)
        text.num_computed = min(text.num_computed, len(each.token_ids) - 1)  # logits need one
        text.num_known = len(each.token_ids)
        text.guesses = []
        text.num_computed = self._num_computed(each)
        return text

    def _add_row(self, each: Wanted) -> int:
        asked = each.sampling
        sampling = SamplingParams(
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            seed=asked.seed,
        )
        new = NewRow(each.request_id, [], each.num_prompt_tokens, sampling)
        row = self._batch.add(new)
        self._sampling.add(row, new)
        return row

    # ---- blocks

    def _num_computed(self, each: Wanted) -> int:
        """With the blocks, behind those computed for it, that are known to hold its text."""
        text = self._texts.get(each.request_id)
        computed = 0 if text is None else text.num_computed
        index = computed // self._block_size
        most = min(len(each.block_names), (len(each.token_ids) - 1) // self._block_size)
        while index < most and self._held.get(each.block_table[index]) == each.block_names[index]:
            index += 1
            computed = max(computed, index * self._block_size)
        return computed

    def _name_blocks(self, each: Wanted) -> None:
        text = self._texts[each.request_id]
        full = min(text.num_computed // self._block_size, len(each.block_names))
        for index in range(text.num_named, full):
            self._held[each.block_table[index]] = each.block_names[index]
            text.num_named = index + 1

    # ---- steps

    def _chunk(self, each: Wanted, end: int) -> Chunk:
        """Of a request's tokens, those from `num_computed` to `end`; they count as computed."""
        text = self._texts[each.request_id]
        start, text.num_computed = text.num_computed, end
        for block in each.block_table[start // self._block_size :]:
            self._held.pop(block, None)
        blocks = list(each.block_table[text.num_blocks :])
        text.num_blocks += len(blocks)
        return Chunk(each.request_id, start, end - start, True, blocks)

    def _guess(self, ready: Sequence[Wanted], chunks: list[Chunk]) -> None:
        """Compute the chunks, and draw what may follow those of `ready`."""
        step = self._batch.gather(chunks)
        names = {each.request_id for each in ready}
        places = [i for i, chunk in enumerate(chunks) if chunk.request_id in names]
        last = step.query_start[1:][places].astype(np.int64) - 1
        forward = self._executor.launch(step, last)
        if ready:
            self._draw(ready, step.rows[places], forward.logits(0, len(ready)))

    def _draw(self, ready: Sequence[Wanted], rows: Ints, logits: Any) -> None:
        choice = self._sampling.choose(self._sampling.draw(logits, rows, self._batch))
        self._batch.append(rows, choice.token_ids)
        for i, each in enumerate(ready):
            token = int(choice.token_ids[i])
            if i not in choice.errors and token < self._num_sayable:
                self._texts[each.request_id].guesses.append(token)

    def _goes_on(self, each: Wanted, depth: int) -> bool:
        return each.count > depth == len(self._texts[each.request_id].guesses)

    def warm_up(self, num_blocks: int) -> None:
        """Guess twice behind a short text in the first blocks.

        Raises:
            ModelError: the model computes nothing finite.
        """
        length = min(WARM_UP_TOKENS, num_blocks * self._block_size, self._max_model_len - 1) - 1
        if length < 1:
            return
        blocks = list(range(-(-(length + 1) // self._block_size)))
        name, params = "warm-up", SamplingParams(temperature=0.0)
        wanted = Wanted(name, [0] * length, length, params, blocks, [], 2, 2, 1, 1)
        if not self._guesses([wanted])[0]:
            raise ModelError("the draft model's logits are not finite")
        self.forget(name)
