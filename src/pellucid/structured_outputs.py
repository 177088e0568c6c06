"""What form an answer must have."""

from __future__ import annotations

from typing import Any

import msgspec

from pellucid.errors import BadRequest


class StructuredOutputs(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Exactly one of these constrains an answer; the names are vLLM's.

    Raises BadRequest on construction unless one is set.
    """

    json: str | dict[str, Any] | None = None  # a JSON schema, or its text
    regex: str | None = None  # matched as a whole; Rust's syntax, without look-around
    choice: list[str] | None = None
    grammar: str | None = None  # llguidance's Lark, or llama.cpp's GBNF
    json_object: bool | None = None  # any JSON object

    def __post_init__(self) -> None:
        if len(self.kinds) != 1:
            given = ", ".join(self.kinds) or "nothing"
            raise self._bad(f"needs exactly one of {', '.join(_KINDS)}, got {given}")

    @property
    def kinds(self) -> list[str]:
        """Names of the fields that are set."""
        values = {name: getattr(self, name) for name in _KINDS}
        return [name for name, value in values.items() if value is not None and value is not False]

    def _bad(self, problem: str) -> BadRequest:
        return BadRequest(
            f"structured_outputs {problem}", param="structured_outputs", code="invalid_value"
        )


_KINDS = StructuredOutputs.__struct_fields__
