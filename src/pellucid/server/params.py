"""From the fields of a request to `SamplingParams`, and the rules that span several fields."""

from __future__ import annotations

from typing import Any, cast

from pellucid.config import SchedulerSettings, ServerConfig
from pellucid.errors import BadRequest
from pellucid.sampling_params import SamplingParams
from pellucid.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    OpenAIFields,
    Prompt,
    SamplingFields,
    StreamPadding,
)
from pellucid.server.structured import structured_outputs

_SHARED = tuple(
    name for name in SamplingParams.__struct_fields__ if name in SamplingFields.__struct_fields__
)


def chat_params(body: ChatRequest) -> SamplingParams:
    """Raises BadRequest naming the field, as all functions here."""
    limit = body.max_completion_tokens
    if limit is not None and body.max_tokens not in (None, limit):
        raise invalid("max_tokens", "contradicts max_completion_tokens; give one of them")
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs to be true")
    return _sampling(
        body,
        max_tokens=limit if limit is not None else body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )


def completion_params(body: CompletionRequest) -> SamplingParams:
    if body.best_of not in (None, body.n or 1):
        raise BadRequest(
            "best_of other than n is not supported", param="best_of", code="unsupported_value"
        )
    given: dict[str, Any] = {"logprobs": body.logprobs}
    if scores_only(body):
        given["max_tokens"] = 1  # the engine generates one token, which nobody is shown
    given["prompt_logprobs"] = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        if body.stream and (body.n or 1) > 1:
            raise invalid("n", "must be 1 where echo and logprobs are streamed")
        given["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    return _sampling(body, **given)


def generate_params(body: GenerateRequest) -> SamplingParams:
    if body.n not in (None, 1):
        raise invalid("n", f"must be 1 on this route, got {body.n}")
    return _sampling(body)


def scores_only(body: SamplingFields) -> bool:
    """`echo` with `max_tokens: 0`: the prompt's own log probabilities are all that is asked."""
    return isinstance(body, CompletionRequest) and bool(body.echo) and body.max_tokens == 0


def check_fields(
    body: SamplingFields, config: ServerConfig, scheduler: SchedulerSettings, vocab_size: int
) -> None:
    """The server's limits, and what does not go together."""
    if isinstance(body, OpenAIFields):
        options = body.stream_options
        check_stream_options(options, streams=bool(body.stream))
        if options and options.continuous_usage_stats and not options.include_usage:
            field = "stream_options.continuous_usage_stats"
            raise invalid(field, "needs include_usage to be true")
        if body.prompt_logprobs is not None and body.stream:
            raise invalid("prompt_logprobs", "cannot be streamed")
    if (body.n or 1) > config.max_n:
        raise invalid("n", f"must be at most {config.max_n}, got {body.n}")
    if body.priority and scheduler.policy != "priority":
        raise invalid("priority", f"has no effect with the {scheduler.policy} policy")
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        count = getattr(body, name, None)
        if isinstance(count, bool) or count is None:
            continue
        if count < -1:
            raise invalid(name, f"must be -1 (the whole vocabulary) or more, got {count}")
        if (vocab_size if count == -1 else count) > config.max_logprobs:
            raise invalid(name, f"must be at most {config.max_logprobs}, got {count}")


def check_stream_options(options: StreamPadding | None, *, streams: bool) -> None:
    if options is None:
        return
    if not streams:
        raise invalid("stream_options", "needs stream to be true")
    if options.include_obfuscation:
        field = "stream_options.include_obfuscation"
        raise BadRequest(f"{field} is not supported", param=field, code="unsupported_field")


def prompts_of(field: str, prompt: Prompt, max_prompts: int) -> list[str | list[int]]:
    """Sort apart the four forms of `field`: a text, texts, token ids, lists of token ids.

    Raises:
        BadRequest: empty, mixed or too many.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid(field, "must not be empty")
    kinds = {type(part) for part in prompt}
    if len(kinds) > 1:
        raise BadRequest(
            f"{field} must not mix texts, token ids and lists of token ids",
            param=field,
            code="invalid_type",
        )
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if len(prompt) > max_prompts:
        raise invalid(field, f"must hold at most {max_prompts} prompts, got {len(prompt)}")
    return cast("list[str | list[int]]", prompt)


def invalid(param: str, problem: str) -> BadRequest:
    return BadRequest(f"{param} {problem}", param=param, code="invalid_value")


def _sampling(body: SamplingFields, **given: Any) -> SamplingParams:
    fields = {name: value for name in _SHARED if (value := getattr(body, name)) is not None}
    fields["structured_outputs"] = structured_outputs(body)
    if isinstance(body.stop, str):
        fields["stop"] = [body.stop]
    return SamplingParams(**(fields | given))
