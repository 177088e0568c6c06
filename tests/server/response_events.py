"""The Responses API's streams, held to their specification: every event's shape, and their order.

Written from https://platform.openai.com/docs/api-reference/responses-streaming, and from the
pydantic models of the `openai` client, which are generated from the specification.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

# Sent by OpenAI, but missing in the client's model.
UNMODELLED = {"response": {"store"}}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ENDS = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}


def checked_response(data: Any) -> Any:
    """A response that the client's model holds, with nothing missing and nothing beyond it."""
    checked(Response.model_validate(data), data)
    return data


def checked(parsed: BaseModel, data: Any) -> None:
    assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == data
    check_extras(parsed)


def check_extras(value: Any) -> None:
    if isinstance(value, BaseModel):
        known = UNMODELLED.get(getattr(value, "object", ""), set())
        assert set(value.model_extra or {}) <= known, value
        for name in value.model_fields_set:
            check_extras(getattr(value, name, None))
    elif isinstance(value, list):
        for item in value:
            check_extras(item)


def events_in(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each with the name that its type says."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


class Stream:
    """Follows a stream event by event; any that must not come now is an error."""

    def __init__(self) -> None:
        self.num_events = 0
        self.id = ""
        self.items: list[Any] = []  # that are done
        self.item: Any = None  # that is open, as far as deltas tell
        self.part: Any = None  # of the item, that is open
        self.is_said = False  # the done event of the part or call has come
        self.end: Any = None

    def follow(self, events: list[dict[str, Any]]) -> Any:
        """The final response."""
        for event in events:
            self.take(event)
        assert self.end is not None
        return self.end

    def take(self, event: dict[str, Any]) -> None:
        assert self.end is None, "an event behind the last"
        parsed = EVENT.validate_python(event)
        assert parsed.type == event["type"]
        checked(parsed, event)
        assert event["sequence_number"] == self.num_events
        self.num_events += 1
        kind = event["type"].removeprefix("response.")
        if "response" in event:
            self.lifecycle(kind, event["response"])
            return
        assert self.num_events > 2
        assert event["output_index"] == len(self.items)
        if self.item is not None and "item_id" in event:
            assert event["item_id"] == self.item["id"]
        getattr(self, kind.replace(".", "_"))(event)

    def lifecycle(self, kind: str, response: Any) -> None:
        if kind in ("created", "in_progress"):
            assert self.num_events == {"created": 1, "in_progress": 2}[kind]
            assert response["status"] == "in_progress"
            assert response["output"] == []
            assert response["usage"] is None
            self.id = response["id"]
            return
        assert self.num_events > 2
        assert response["id"] == self.id
        assert response["status"] == ENDS[f"response.{kind}"]
        assert (response["error"] is not None) == (kind == "failed")
        assert (response["incomplete_details"] is not None) == (kind == "incomplete")
        if kind == "failed":
            assert len(response["output"]) == len(self.items) + (self.item is not None)
        else:
            assert self.item is None
            assert response["output"] == self.items
            assert all(item["status"] == "completed" for item in self.items[:-1])
            assert self.items[-1]["status"] == response["status"]
        self.end = response

    def output_item_added(self, event: Any) -> None:
        assert self.item is None, "the item before is open"
        self.item, self.is_said = event["item"], False
        assert self.item["status"] == "in_progress"
        assert self.item.get("content", []) == []
        assert self.item.get("arguments", "") == ""

    def content_part_added(self, event: Any) -> None:
        assert self.item["type"] in ("message", "reasoning")
        assert self.part is None
        assert event["content_index"] == len(self.item["content"])
        self.part, self.is_said = event["part"], False
        assert self.part["text"] == ""
        self.part["seen"] = []

    def text_delta(self, event: Any, part_type: str) -> None:
        assert self.part["type"] == part_type
        assert not self.is_said
        assert event["content_index"] == len(self.item["content"])
        assert event["delta"]
        self.part["text"] += event["delta"]
        self.part["seen"] += event.get("logprobs", [])

    def text_done(self, event: Any) -> None:
        assert not self.is_said
        assert event["text"] == self.part["text"]
        assert event.get("logprobs", []) == self.part["seen"]
        self.is_said = True

    def output_text_delta(self, event: Any) -> None:
        self.text_delta(event, "output_text")

    def reasoning_text_delta(self, event: Any) -> None:
        self.text_delta(event, "reasoning_text")

    def output_text_done(self, event: Any) -> None:
        assert self.part["type"] == "output_text"
        self.text_done(event)

    def reasoning_text_done(self, event: Any) -> None:
        assert self.part["type"] == "reasoning_text"
        self.text_done(event)

    def content_part_done(self, event: Any) -> None:
        assert self.is_said
        part = event["part"]
        assert part["text"] == self.part["text"]
        tokens = [entry["token"] for entry in part.get("logprobs", [])]
        assert tokens == [entry["token"] for entry in self.part["seen"]]
        self.item["content"].append(part)
        self.part = None

    def function_call_arguments_delta(self, event: Any) -> None:
        assert self.item["type"] == "function_call"
        assert not self.is_said
        assert event["delta"]
        self.item["arguments"] += event["delta"]

    def function_call_arguments_done(self, event: Any) -> None:
        assert event["arguments"] == self.item["arguments"]
        self.is_said = True

    def output_item_done(self, event: Any) -> None:
        assert self.part is None
        assert self.is_said
        item = event["item"]
        assert item["status"] in ("completed", "incomplete")
        assert item == self.item | {"status": item["status"]}
        self.items.append(item)
        self.item = None
