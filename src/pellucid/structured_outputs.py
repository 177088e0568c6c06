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

    json: str | dict[str, Any] | bool | None = None  # a JSON schema, or its text
    regex: str | None = None  # matched as a whole; Rust's syntax, without look-around
    choice: list[str] | None = None
    grammar: str | None = None  # llguidance's Lark, or llama.cpp's GBNF
    json_object: bool | None = None  # true: any JSON object

    def __post_init__(self) -> None:
        if self.json_object is False:
            raise self._bad("json_object must be true where it is given")
        if len(self.kinds) != 1:
            given = ", ".join(self.kinds) or "nothing"
            raise self._bad(f"needs exactly one of {', '.join(_KINDS)}, got {given}")

    @property
    def kinds(self) -> list[str]:
        """Names of the fields that are set."""
        return [name for name in _KINDS if getattr(self, name) is not None]

    def _bad(self, problem: str) -> BadRequest:
        return BadRequest(
            f"structured_outputs {problem}", param="structured_outputs", code="invalid_value"
        )


_KINDS = StructuredOutputs.__struct_fields__
