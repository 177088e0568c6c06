"""From what the engine generated to what the caller reads: token ids become text.

One pass per engine step over its deltas. Here live the things the engine knows nothing of: half
characters that wait for their other half, stop strings, the text and bytes of logprobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pellucid.frontend.detokenizer import Detokenizer, StopChecker
from pellucid.frontend.outputs import Delta, Logprob
from pellucid.frontend.stats import RequestReport, StepReport
from pellucid.messages import (
    AddRequest,
    FinishReason,
    RequestTimes,
    StepOutput,
    TokenDelta,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from pellucid.frontend.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Sink = Callable[[Delta], None]


class _Sequence:
    """One answer on its way to its reader."""

    __slots__ = (
        "detokenizer",
        "index",
        "last_time",
        "num_cached_tokens",
        "num_output_tokens",
        "num_prompt_tokens",
        "params",
        "request_id",
        "sink",
        "stops",
        "times",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        message: AddRequest,
        prompt_token_ids: list[int],
        index: int,
        sink: Sink,
    ) -> None:
        self.request_id = message.request_id
        self.params = params = message.sampling
        self.index = index
        self.sink = sink
        self.detokenizer = Detokenizer(tokenizer, params, prompt_token_ids)
        self.stops = (
            StopChecker(params.stop, params.include_stop_str_in_output) if params.stop else None
        )
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self.times = RequestTimes(arrival=message.arrival_time)
        self.last_time: float | None = None  # of its latest delta with tokens

    def push(self, token_ids: list[int]) -> tuple[str, str | None]:
        """Take tokens; return the text that is safe to show, and the stop string found."""
        if self.stops is None:
            return self.detokenizer.push(token_ids), None
        # As in vLLM, text of the first min_tokens tokens is not searched for stop strings.
        exempt = max(0, self.params.min_tokens - self.num_output_tokens)
        text = self.detokenizer.push(token_ids[:exempt]) if exempt else ""
        searched, stop = self.stops.push(self.detokenizer.push(token_ids[exempt:]))
        return text + searched, stop

    def flush(self) -> tuple[str, str | None]:
        """No token will follow: return what was held back, and the stop string found in it."""
        rest = self.detokenizer.finish()
        if self.stops is None:
            return rest, None
        text, stop = self.stops.push(rest) if rest else ("", None)
        return (text, stop) if stop is not None else (text + self.stops.flush(), None)


@dataclass(slots=True)
class ProcessedStep:
    """What a step asks of its caller: tell the engine to abort, tell the listeners."""

    report: StepReport
    stopped: list[str] = field(default_factory=list)  # ended by a stop string, unknown to engine
    finished: list[RequestReport] = field(default_factory=list)


class OutputProcessor:
    """Holds every unfinished answer and hands each delta to its sink."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sequences: dict[str, _Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def is_untouched(self, request_id: str) -> bool:
        """Whether an answer is expected of which no token has come."""
        sequence = self._sequences.get(request_id)
        return sequence is not None and sequence.num_output_tokens == 0

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of requests without a token of their answer; n answers share a prompt."""
        return sum(
            sequence.num_prompt_tokens
            for sequence in self._sequences.values()
            if sequence.index == 0 and sequence.num_output_tokens == 0
        )

    def add(self, message: AddRequest, prompt_token_ids: list[int], index: int, sink: Sink) -> None:
        """Expect deltas for `message`; each becomes one call of `sink`, the last has a reason."""
        self._sequences[message.request_id] = _Sequence(
            self._tokenizer, message, prompt_token_ids, index, sink
        )

    def process(self, output: StepOutput) -> ProcessedStep:
        """Hand every delta of a step to its sink. Deltas of forgotten requests are dropped."""
        step = ProcessedStep(StepReport(output.stats))
        now = output.stats.time
        for token_delta in output.deltas:
            sequence = self._sequences.get(token_delta.request_id)
            if sequence is None:
                continue
            if token_delta.token_ids:
                _account(sequence, now, step.report)
            try:
                delta = self._delta(sequence, token_delta, now)
            except Exception as error:  # one answer's trouble must not end the others
                logger.exception("cannot process the output of %s", sequence.request_id)
                delta = _broken(sequence, error, now)
            if delta.finish_reason is not None:
                del self._sequences[sequence.request_id]
                step.finished.append(_report(sequence, delta.finish_reason, delta.times))
                if token_delta.finish_reason is None:
                    step.stopped.append(sequence.request_id)
            sequence.sink(delta)
        return step

    def finish(self, request_id: str, reason: FinishReason, now: float) -> RequestReport | None:
        """End an answer from this side; its sink gets the text that was held back.

        Returns None if the id is unknown, so that an abort is counted and sent once.
        """
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return None
        times = _finish_times(sequence, now)
        sequence.sink(
            Delta(
                sequence.index,
                sequence.flush()[0],
                [],
                finish_reason=reason,
                times=times,
                num_cached_tokens=sequence.num_cached_tokens,
            )
        )
        return _report(sequence, reason, times)

    def _delta(self, sequence: _Sequence, source: TokenDelta, now: float) -> Delta:
        params = sequence.params
        reason, stop_reason = source.finish_reason, source.stop_token_id
        if source.times is not None:
            sequence.times = source.times
        if source.num_cached_tokens:
            sequence.num_cached_tokens = source.num_cached_tokens
        shown = source.token_ids
        if reason == "stop" and not params.include_stop_str_in_output:
            shown = shown[:-1]  # the token that ended it is no part of the text
        text, stop = sequence.push(shown)
        sequence.num_output_tokens += len(source.token_ids)
        if stop is None and reason is not None:
            rest, stop = sequence.flush()
            text += rest
        delta = Delta(
            sequence.index,
            text,
            source.token_ids,
            finish_reason=reason,
            stop_reason=stop_reason,
            num_cached_tokens=sequence.num_cached_tokens,
            error=source.error,
            embedding=source.embedding,
        )
        if stop is not None:
            delta.finish_reason, delta.stop_reason = "stop", stop
        if delta.finish_reason is not None:
            delta.times = _finish_times(sequence, now)
        if source.logprobs is not None:
            delta.logprobs = [self._logprob(entry) for entry in source.logprobs]
        if source.prompt_logprobs is not None:
            delta.prompt_logprobs = [
                None if entry is None else self._logprob(entry) for entry in source.prompt_logprobs
            ]
        return delta

    def _logprob(self, entry: TokenLogprobs) -> Logprob:
        top = [
            self._spell(token_id, logprob)
            for token_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
        ]
        chosen = self._spell(entry.token_id, entry.logprob)
        chosen.rank, chosen.top = entry.rank, top
        return chosen

    def _spell(self, token_id: int, logprob: float) -> Logprob:
        tokenizer = self._tokenizer
        return Logprob(
            token_id, logprob, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id)
        )


def _account(sequence: _Sequence, now: float, report: StepReport) -> None:
    if sequence.last_time is None:
        sequence.times.first_token = now
        report.times_to_first_token.append(now - sequence.times.arrival)
    else:
        report.inter_token_latencies.append(now - sequence.last_time)
    sequence.last_time = now


def _finish_times(sequence: _Sequence, now: float) -> RequestTimes:
    if sequence.times.finished is None:  # the engine did not decide this end
        sequence.times.finished = now
    return sequence.times


def _broken(sequence: _Sequence, error: Exception, now: float) -> Delta:
    return Delta(
        sequence.index,
        "",
        [],
        finish_reason="error",
        times=_finish_times(sequence, now),
        error=f"{type(error).__name__} in the front end",
    )


def _report(sequence: _Sequence, reason: FinishReason, times: RequestTimes | None) -> RequestReport:
    return RequestReport(
        request_id=sequence.request_id,
        params=sequence.params,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        num_output_tokens=sequence.num_output_tokens,
        finish_reason=reason,
        times=times or sequence.times,
    )
