"""Fields of other servers that are not supported here, and the values that ask for nothing.

Clients send such fields out of habit (`"functions": null`, `"store": false`). A value listed here
changes nothing, so it is accepted; any other is refused by name, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pellucid.errors import BadRequest

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None,),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory", "in-memory"),
    "reasoning_effort": (None, "none"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None,),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    # vLLM and others
    "chat_template": (None,),  # a template from a request would run in the server
    "documents": (None,),
    "grammar": (None,),
    "include_reasoning": (None, True),
    "kv_transfer_params": (None,),
    "length_penalty": (None, 1, 1.0),
    "logit_processors": (None, []),
    "logits_processors": (None, []),
    "lora": (None, []),  # reserved; see REASONS
    "lora_request": (None,),
    "mm_processor_kwargs": (None,),
    "prompt_embeds": (None,),
    "repetition_detection": (None,),
    "session_id": (None,),
    "stream_interval": (None, 1),
    "thinking_token_budget": (None,),
    "truncation_side": (None, "left"),
    "use_beam_search": (None, False),
}

# What there is to add to "is not supported".
REASONS: dict[str, str] = {
    "lora": "this server has no adapters",
    "lora_request": "this server has no adapters",
}

# What a client finds in an answer and sends back as part of the conversation.
MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
}


def drop_neutral(fields: dict[str, Any], supported: Collection[str] = ()) -> None:
    """Remove neutral fields from a decoded body, in place, but for those that the route supports.

    Raises:
        BadRequest: one of these fields asks for something.
    """
    _drop(fields, {name: NEUTRAL[name] for name in NEUTRAL.keys() - set(supported)}, "")
    messages = fields.get("messages")
    if isinstance(messages, list):
        for i, message in enumerate(messages):
            if isinstance(message, dict):
                _drop(message, MESSAGE_NEUTRAL, f"messages[{i}].")


def _drop(fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]], prefix: str) -> None:
    for name in fields.keys() & neutral.keys():
        value = fields.pop(name)
        # 0 and False are equal in Python, but not in JSON.
        if not any(type(value) is type(n) and value == n for n in neutral[name]):
            path = prefix + name
            reason = f": {REASONS[name]}" if name in REASONS else ""
            raise BadRequest(
                f"{path} is not supported{reason}", param=path, code="unsupported_field"
            )
