"""One answer on the terminal: its text as it arrives, then its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pellucid.errors import PellucidError
from pellucid.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pellucid.frontend.async_engine import AsyncLLM
    from pellucid.messages import RequestTimes


class Answer(msgspec.Struct, kw_only=True):
    """A finished answer; seconds and tokens per second, None where they cannot be known."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    completion_tokens: int
    ttft_seconds: float | None = None  # from arrival to the first token
    prefill_tokens_per_s: float | None = None  # computed prompt tokens / time to the first token
    decode_tokens_per_s: float | None = None  # tokens after the first / time after the first

    def summary(self) -> str:
        """The numbers in one line."""
        parts = [f"{self.prompt_tokens} + {self.completion_tokens} tokens"]
        if self.ttft_seconds is not None:
            parts.append(f"first after {self.ttft_seconds * 1e3:.0f} ms")
        if self.decode_tokens_per_s is not None:
            parts.append(f"then {self.decode_tokens_per_s:.1f} tokens/s")
        if self.finish_reason not in (None, "stop"):
            parts.append(f"ended by {self.finish_reason}")
        return ", ".join(parts)


async def stream_answer(
    llm: AsyncLLM,
    prompt: str | Sequence[dict[str, Any]],
    params: SamplingParams,
    on_text: Callable[[str], None],
) -> Answer:
    """Answer a text or a conversation; `on_text` gets every piece as it arrives.

    With the model's LoRA adapter, the first if there are several.

    Raises:
        BadRequest: the prompt or a parameter cannot be served.
        EngineDead: the engine failed.
    """
    prompt_ids = llm.encode(prompt) if isinstance(prompt, str) else await llm.chat_prompt(prompt)
    pieces: list[str] = []
    num_tokens = 0
    adapter = next(iter(llm.adapters), None)
    async for delta in llm.generate(prompt_ids, params, adapter=adapter):
        pieces.append(delta.text)
        on_text(delta.text)
        num_tokens += len(delta.token_ids)
    if delta.finish_reason == "error":
        raise PellucidError(delta.error or "the engine ended the answer with an error")
    answer = Answer(
        text="".join(pieces),
        finish_reason=delta.finish_reason,
        prompt_tokens=len(prompt_ids),
        cached_tokens=delta.num_cached_tokens,
        completion_tokens=num_tokens,
    )
    if delta.times is not None:
        _add_times(answer, delta.times)
    return answer


def _add_times(answer: Answer, times: RequestTimes) -> None:
    """Fill in the timings from the engine's own record."""
    if times.first_token is None:
        return
    answer.ttft_seconds = times.first_token - times.arrival
    computed = answer.prompt_tokens - answer.cached_tokens
    if times.scheduled is not None and times.first_token > times.scheduled:
        answer.prefill_tokens_per_s = computed / (times.first_token - times.scheduled)
    if times.finished is not None and times.finished > times.first_token:
        seconds = times.finished - times.first_token
        answer.decode_tokens_per_s = (answer.completion_tokens - 1) / seconds
