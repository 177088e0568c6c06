"""A generation that is watched while it is read: its tokens are counted, its answers remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pellucid.frontend.generation import Generation, merge
from pellucid.frontend.inputs import PreparedRequest
from pellucid.frontend.outputs import Delta


class Watched:
    """Reads like `generation`.

    `on_end` is called once, before the reader gets the last delta or when it stops reading early,
    with the number of tokens generated, and with all answers, whole and in order, if they are.
    """

    def __init__(
        self, generation: Generation, on_end: Callable[[int, list[Delta] | None], None]
    ) -> None:
        self._generation = generation
        self._on_end = on_end
        self._answers: dict[int, Delta] = {}
        self._num_open = len(generation.request.sequences)
        self._num_tokens = 0
        self._ended = False

    @property
    def request(self) -> PreparedRequest:
        return self._generation.request

    @property
    def request_id(self) -> str:
        return self._generation.request_id

    @property
    def prompt_token_ids(self) -> list[int]:
        return self._generation.prompt_token_ids

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> Delta:
        delta = await anext(self._generation)
        self._num_tokens += len(delta.token_ids)
        known = self._answers.get(delta.index)
        if known is None:
            self._answers[delta.index] = dataclasses.replace(delta)  # the reader may change its own
        else:
            merge(known, delta)
        if delta.finish_reason is not None:
            self._num_open -= 1
            if self._num_open == 0:
                self._end([self._answers[index] for index in sorted(self._answers)])
        return delta

    async def aclose(self) -> None:
        await self._generation.aclose()
        self._end(None)

    def _end(self, answers: list[Delta] | None) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(self._num_tokens, answers)
