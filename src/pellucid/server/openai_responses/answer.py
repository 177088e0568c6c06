"""A response from its beginning to its end."""

from __future__ import annotations

import time

from pellucid.errors import BadRequest
from pellucid.frontend.outputs import Delta
from pellucid.server.chat_job import ChatJob
from pellucid.server.errors import ErrorDetail
from pellucid.server.job import Tally
from pellucid.server.openai_responses.objects import (
    EchoedReasoning,
    FailureCode,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseFailure,
    ResponseObject,
    ResponsesUsage,
)
from pellucid.server.openai_responses.output import Output, Tell
from pellucid.server.openai_responses.protocol import (
    PlainText,
    ResponsesRequest,
    ResponsesTool,
    TextOptions,
)


class Answer:
    """One answer on its way; `response` is what is known of it so far."""

    def __init__(self, body: ResponsesRequest, chat: ChatJob, tell: Tell) -> None:
        self._chat = chat
        self._parts = chat.parts(0)
        self._tally = Tally(chat.job)
        shows_end = chat.job.params.include_stop_str_in_output
        self._output = Output(self._parts, tell, shows_end=shows_end)
        self.response = _begun(body, chat)

    def push(self, delta: Delta) -> None:
        """Take the next delta; the last one completes the response."""
        self._output.push(delta)
        self._tally.add(delta, self._parts.num_reasoning_tokens)
        if delta.finish_reason is None:
            return
        response = self.response
        response.output = self._output.items
        response.usage = self._usage()
        if delta.finish_reason == "stop":
            response.status, response.completed_at = "completed", int(time.time())
        else:
            response.status = "incomplete"
            if delta.finish_reason == "length":
                response.incomplete_details = IncompleteDetails("max_output_tokens")

    def fail(self, error: ErrorDetail) -> None:
        """The rest will not come."""
        self._output.cut()
        self.response.output = self._output.items
        self.response.status = "failed"
        is_mine = error.type != BadRequest.type
        code: FailureCode = "server_error" if is_mine else "invalid_prompt"
        self.response.error = ResponseFailure(code, error.message)

    def _usage(self) -> ResponsesUsage:
        usage = self._tally.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return ResponsesUsage(
            usage.prompt_tokens,
            InputTokensDetails(cached, self._num_written(usage.prompt_tokens, cached)),
            usage.completion_tokens,
            OutputTokensDetails(self._parts.num_reasoning_tokens),
            usage.total_tokens,
        )

    def _num_written(self, num_prompt_tokens: int, num_cached_tokens: int) -> int:
        """Prompt tokens that the prefix cache has now, and had not before."""
        service = self._chat.service
        if not service.engine.cache.prefix_caching:
            return 0
        block_size = service.llm.info.block_size
        return max(0, num_prompt_tokens // block_size * block_size - num_cached_tokens)


def _begun(body: ResponsesRequest, chat: ChatJob) -> ResponseObject:
    """A response without output, which repeats what was asked for, defaults filled in."""
    text, params = body.text or TextOptions(), chat.job.params
    return ResponseObject(
        id=chat.job.id,
        created_at=chat.job.created,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=chat.service.model_name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=EchoedReasoning(body.reasoning.effort if body.reasoning else None),
        safety_identifier=body.safety_identifier,
        temperature=params.temperature,
        text=TextOptions(format=text.format or PlainText(), verbosity="medium"),
        tool_choice=body.tool_choice or "auto",
        tools=[_strictness(tool) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        user=body.user,
        metadata=body.metadata or {},
    )


def _strictness(tool: ResponsesTool) -> ResponsesTool:
    return ResponsesTool(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict is not False,
    )
