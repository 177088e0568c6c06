"""Fields of other servers that are not supported here, and the values that ask for nothing.

Clients send such fields out of habit (`"functions": null`, `"store": false`). A value listed here
changes nothing, so it is accepted; any other is refused by name, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pellucid.errors import BadRequest

# As coding agents ask for it by default: no thoughts of earlier turns are to go.
_KEEP_THOUGHTS = {"type": "clear_thinking_20251015", "keep": "all"}

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
    "service_tier": (None, "auto", "default", "standard_only"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None,),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    # Anthropic
    "container": (None,),
    "context_management": (None, [], {"edits": []}, {"edits": [_KEEP_THOUGHTS]}),
    "diagnostics": (None,),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "speed": (None, "standard"),
    "thread": (None,),
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
    # Ollama
    "height": (None,),
    "images": (None, []),
    "shift": (None, False),
    "steps": (None,),
    "template": (None, ""),  # as chat_template
    "width": (None,),
}

# What there is to add to "is not supported".
REASONS: dict[str, str] = {
    "lora": "an adapter is asked for by its name, as `model`",
    "lora_request": "an adapter is asked for by its name, as `model`",
    "thread": "nothing is kept between requests",
}

# What a client finds in an answer and sends back as part of the conversation, or writes of habit.
MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "images": (None, []),
    "refusal": (None,),
    "type": (None, "message", "text"),
}

# Of Ollama's `options`.
OPTION_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "embedding_only": (None, False),
    "f16_kv": (None, True),
    "logits_all": (None, False),
    "mirostat": (None, 0),
    "penalize_newline": (None, True),
    "tfs_z": (None, 1, 1.0),
    "typical_p": (None, 1, 1.0),
    "vocab_only": (None, False),
}


def drop_neutral(fields: dict[str, Any], supported: Collection[str] = ()) -> None:
    """Remove neutral fields from a decoded body, in place, but for those that the route supports.

    Raises:
        BadRequest: one of these fields asks for something.
    """
    drop(fields, {name: NEUTRAL[name] for name in NEUTRAL.keys() - set(supported)}, "")
    messages = fields.get("messages")
    if isinstance(messages, list):
        for i, message in enumerate(messages):
            if isinstance(message, dict):
                drop(message, MESSAGE_NEUTRAL, f"messages[{i}].")
    options = fields.get("options")
    if isinstance(options, dict):
        drop(options, OPTION_NEUTRAL, "options.")


def drop(fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]], prefix: str) -> None:
    """The same for the fields of any object; `prefix` leads to it. Raises BadRequest."""
    for name in fields.keys() & neutral.keys():
        value = fields.pop(name)
        # 0 and False are equal in Python, but not in JSON.
        if not any(type(value) is type(n) and value == n for n in neutral[name]):
            path = prefix + name
            reason = f": {REASONS[name]}" if name in REASONS else ""
            raise BadRequest(
                f"{path} is not supported{reason}", param=path, code="unsupported_field"
            )
