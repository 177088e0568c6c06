"""Which form a request wants its answer to have: OpenAI's field, vLLM's, and vLLM's older ones."""

from __future__ import annotations

from pellucid.errors import BadRequest
from pellucid.server.protocol import JsonObjectFormat, JsonSchemaFormat, SamplingFields
from pellucid.structured_outputs import StructuredOutputs

_OLDER = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def structured_outputs(body: SamplingFields) -> StructuredOutputs | None:
    """What the answer must be; None leaves it free. Raises BadRequest if two fields say it."""
    found = _found(body)
    if len(found) > 1:
        first, second = list(found)[:2]
        raise BadRequest(
            f"{second} and {first} exclude each other", param=second, code="invalid_value"
        )
    return next(iter(found.values()), None)


def structured_field(body: SamplingFields, default: str = "structured_outputs") -> str:
    """The field that says it, for errors to name."""
    return next(iter(_found(body)), default)


def _found(body: SamplingFields) -> dict[str, StructuredOutputs]:
    """By the path of the field."""
    found: dict[str, StructuredOutputs] = {}
    form = body.response_format
    if isinstance(form, JsonObjectFormat):
        found["response_format"] = StructuredOutputs(json_object=True)
    elif isinstance(form, JsonSchemaFormat):
        path = "response_format.json_schema.schema"
        found[path] = StructuredOutputs(json=form.json_schema.schema)
    if body.structured_outputs is not None:
        found[f"structured_outputs.{body.structured_outputs.kinds[0]}"] = body.structured_outputs
    for name, kind in _OLDER.items():
        if (value := getattr(body, name)) is not None:
            found[name] = StructuredOutputs(**{kind: value})
    return found
