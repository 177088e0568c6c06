"""How the next token of a request is chosen, and when it stops."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pellucid.errors import BadRequest
from pellucid.structured_outputs import StructuredOutputs

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024  # of each
MAX_BAD_WORDS = 128
MAX_TOKEN_LIST = 65_536
MAX_COUNT = 2**31 - 1  # of anything that is counted in tokens
MAX_REPETITION_PENALTY = 1e6  # with its inverse: logits stay finite in float32
GREEDY_EPS = 1e-5
# The error of a request whose fields leave no token that could come next.
NOTHING_LEFT = "every token is ruled out by the request's constraints"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of one request; OpenAI's names, and vLLM's where OpenAI has none.

    Checked on construction: a `BadRequest` names the field and the limit. Checks that need the
    model (token ids against the vocabulary, length against the context) are `check_vocab`'s and
    the front end's.
    """

    n: int = 1
    max_tokens: int | None = 16  # None: up to the model's context
    min_tokens: int = 0
    temperature: float = 1.0  # below 1e-5: greedy
    top_k: int = 0  # 0 or -1: off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # counts the prompt too, as in the CTRL paper
    seed: int | None = None  # None: the front end draws one
    stop: list[str] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    bad_words_token_ids: list[list[int]] = []  # the front end fills it from bad_words
    logprobs: int | None = None  # alternatives per generated token; -1: the whole vocabulary
    prompt_logprobs: int | None = None  # the same for prompt tokens
    structured_outputs: StructuredOutputs | None = None
    grammar: str | None = None  # by grammar/source.py; the front end makes it of structured_outputs
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_EPS

    def __post_init__(self) -> None:
        self._check_types()
        self._check_counts()
        self._check_numbers()
        self._check_lists()
        if self.structured_outputs is not None or self.grammar is not None:
            self._check_company()

    def check_vocab(self, vocab_size: int) -> None:
        """Raise BadRequest for any token id outside [0, vocab_size)."""
        lists = {
            "stop_token_ids": self.stop_token_ids,
            "allowed_token_ids": self.allowed_token_ids or [],
            "logit_bias": list(self.logit_bias),
        }
        for name, ids in lists.items():
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise _bad(
                        name, f"token id {token} is outside the vocabulary (0 to {vocab_size - 1})"
                    )

    def _check_types(self) -> None:
        """A request over HTTP has the right ones; a caller from Python may give anything."""
        try:
            msgspec.convert(
                {name: getattr(self, name) for name in _Types.__struct_fields__}, _Types
            )
        except msgspec.ValidationError as error:
            reason, _, where = str(error).replace("`", "").partition(" - at ")
            name = re.findall(r"\$\.(\w+)", where)[0]
            raise _bad(name, f"is wrong: {reason.lower()}") from None

    def _check_counts(self) -> None:
        _require(1 <= self.n <= 16384, "n", "must be from 1 to 16384", self.n)
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "must be at least 1", self.max_tokens)
            _require(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                f"must not exceed max_tokens ({self.max_tokens})",
                self.min_tokens,
            )
        _require(
            0 <= self.min_tokens <= MAX_COUNT,
            "min_tokens",
            f"must be from 0 to {MAX_COUNT}",
            self.min_tokens,
        )
        _require(
            -1 <= self.top_k <= MAX_COUNT,
            "top_k",
            f"must be -1 or 0 (off), or from 1 to {MAX_COUNT}",
            self.top_k,
        )
        if self.n > 1 and self.greedy:
            raise _bad("n", "must be 1 with temperature 0: every answer would be the same")
        if self.seed is not None:
            _require(-(1 << 63) <= self.seed < 1 << 63, "seed", "must fit in 64 bits", self.seed)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            _require(count is None or count >= -1, name, "must be -1 (all) or more", count)

    def _check_numbers(self) -> None:
        _require(
            0.0 <= self.temperature <= 2.0, "temperature", "must be from 0 to 2", self.temperature
        )
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be above 0 and at most 1", self.top_p)
        _require(0.0 <= self.min_p <= 1.0, "min_p", "must be from 0 to 1", self.min_p)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(-2.0 <= value <= 2.0, name, "must be from -2 to 2", value)
        most = MAX_REPETITION_PENALTY
        _require(
            1 / most <= self.repetition_penalty <= most,
            "repetition_penalty",
            f"must be from {1 / most:g} to {most:g}",
            self.repetition_penalty,
        )

    def _check_company(self) -> None:
        """A grammar alone says which tokens may come, and whether the answer may end."""
        for name in ("ignore_eos", "min_tokens", "allowed_token_ids", "bad_words"):
            if getattr(self, name):
                raise _bad(name, "cannot be combined with structured output")

    def _check_lists(self) -> None:
        _require(
            len(self.stop) <= MAX_STOP_STRINGS,
            "stop",
            f"must hold at most {MAX_STOP_STRINGS} strings",
            len(self.stop),
        )
        _require(all(self.stop), "stop", "must not hold an empty string", "")
        longest = max(map(len, self.stop), default=0)
        _require(
            longest <= MAX_STOP_CHARS,
            "stop",
            f"must have at most {MAX_STOP_CHARS} characters each",
            longest,
        )
        _require(
            len(self.bad_words) <= MAX_BAD_WORDS,
            "bad_words",
            f"must hold at most {MAX_BAD_WORDS} strings",
            len(self.bad_words),
        )
        _require(all(self.bad_words), "bad_words", "must not hold an empty string", "")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            size = len(getattr(self, name) or ())
            _require(size <= MAX_TOKEN_LIST, name, f"must hold at most {MAX_TOKEN_LIST} ids", size)
        if self.allowed_token_ids is not None:
            _require(
                len(self.allowed_token_ids) > 0, "allowed_token_ids", "must not be empty", "[]"
            )
        for bias in self.logit_bias.values():
            _require(-100.0 <= bias <= 100.0, "logit_bias", "values must be from -100 to 100", bias)


# The types of the fields without the checks on construction, for `_check_types`.
_Types: Any = msgspec.defstruct(
    "_Types",
    [
        (field.name, field.type)
        for field in msgspec.structs.fields(SamplingParams)
        if field.name != "structured_outputs"  # checks itself
    ],
)


def _bad(param: str, problem: str) -> BadRequest:
    return BadRequest(f"{param} {problem}", param=param, code="invalid_value")


def _require(holds: bool, param: str, limit: str, value: object) -> None:
    # Comparisons are written so that NaN fails them.
    if not holds:
        raise _bad(param, f"{limit}, got {value}")
