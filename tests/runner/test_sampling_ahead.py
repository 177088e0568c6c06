"""Edits of logits while tokens are under way and rows change hands, against computing them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.runner.base import NewRow
from pellucid.runner.batch import UNKNOWN, Batch
from pellucid.runner.sampling import Draw, RowSampling
from pellucid.sample import transfer
from pellucid.sample.backends import Sampler, TorchSampler
from pellucid.sampling_params import SamplingParams
from tests.device import DEVICE
from tests.triton_interpreter import interpreting

VOCAB, NUM_ROWS, EOS = 41, 3, 2
NOTHING: dict[str, Any] = {}
KINDS: list[dict[str, Any]] = [
    NOTHING,
    {"repetition_penalty": 1.7},
    {"frequency_penalty": -0.6, "presence_penalty": 0.3},
    {"repetition_penalty": 0.8, "frequency_penalty": 0.4, "min_tokens": 2},
    {"logit_bias": {3: 2.5, EOS: 40.0}, "min_tokens": 3},
    {"logit_bias": {5: -1.0}, "presence_penalty": 1.0, "bad_words_token_ids": [[7], [7, 8], [9]]},
    {"allowed_token_ids": [1, 4, 40], "frequency_penalty": 1.5},
    {"allowed_token_ids": [4], "bad_words_token_ids": [[4, 4]]},  # fails with its second token
]


class OnDevice(TorchSampler):
    """Leaves its tokens as tensors, as a GPU's sampler may."""

    def sample(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, failed = (torch.as_tensor(part) for part in super().sample(*arguments))
        return token_ids, failed


@pytest.fixture(scope="module", params=["torch", "on device", "triton"])
def make_sampler(request: pytest.FixtureRequest) -> Iterator[Callable[[], Sampler[Any]]]:
    if request.param != "triton":
        yield {"torch": TorchSampler, "on device": OnDevice}[request.param]
        return
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'pellucid[gpu]'")
    with interpreting():
        from pellucid.sample.triton.sampler import TritonSampler

        yield lambda: TritonSampler(NUM_ROWS)


@dataclass(eq=False)
class Request:
    """One whose tokens the test knows."""

    name: str
    prompt: list[int]
    params: SamplingParams
    generated: list[int] = field(default_factory=list)
    is_over: bool = False

    @property
    def new_row(self) -> NewRow:
        return NewRow(self.name, self.prompt + self.generated, len(self.prompt), self.params)

    def edited(self, logits: torch.Tensor) -> torch.Tensor:
        """Its row of logits as the parameters say, token by token."""
        p, row = self.params, logits.cpu().numpy().copy()
        for token, bias in p.logit_bias.items():
            row[token] += np.float32(bias)
        prompt = self.prompt if p.repetition_penalty != 1.0 else []
        for token in set(prompt + self.generated):
            count, x = np.float32(self.generated.count(token)), row[token]
            factor = np.float32(p.repetition_penalty)
            x = x / factor if x > 0 else x * factor
            x = x - np.float32(p.frequency_penalty) * count
            row[token] = x - (np.float32(p.presence_penalty) if count else np.float32(0.0))
        if p.allowed_token_ids is not None:
            row[[i for i in range(VOCAB) if i not in p.allowed_token_ids]] = -np.inf
        if len(self.generated) < p.min_tokens:
            row[EOS] = -np.inf
        known = self.prompt + self.generated
        for *before, last in p.bad_words_token_ids:
            if not before or known[-len(before) :] == before:
                row[last] = -np.inf
        return torch.from_numpy(row)


class World:
    """The runner's part of the loop that plans ahead: draw a step, change rows, ask for tokens."""

    def __init__(self, sampler: Sampler[Any]) -> None:
        self.batch = Batch(NUM_ROWS, 64, 4)
        self.sampling = RowSampling(sampler, NUM_ROWS, [EOS], VOCAB)
        self.running: list[Request] = []
        self.leaving: list[Request] = []  # preempted, perhaps before their token came
        self.waiting: list[Request] = []
        self.under_way: tuple[Draw, list[Request]] | None = None
        self.generator = torch.Generator().manual_seed(0)

    def add(self, request: Request) -> None:
        self.running.append(request)
        new = request.new_row
        self.sampling.add(self.batch.add(new), new)

    def drop(self, request: Request) -> None:
        self.running.remove(request)
        row = self.batch.drop(request.name)
        assert row is not None
        self.sampling.drop(row)

    def take_result(self) -> None:
        if self.under_way is None:
            return
        drawn, requests = self.under_way
        choice = self.sampling.choose(drawn)
        self.batch.fill(drawn.rows, drawn.places, choice.token_ids)
        for place, request in enumerate(requests):
            if place in choice.errors:
                request.is_over = True
            else:
                request.generated.append(int(choice.token_ids[place]))
        self.under_way = None

    def draw(self, requests: list[Request]) -> None:
        """Draw for some of the running; those that are over are computed for nothing."""
        logits = 4 * torch.randn(len(requests), VOCAB, generator=self.generator)
        expected = [request.edited(row) for request, row in zip(requests, logits, strict=True)]
        logits = logits.to(DEVICE)
        rows = np.array([self.batch.row_of(request.name) for request in requests])
        drawn = self.sampling.draw(logits, rows, self.batch)
        for request, row, edited in zip(requests, logits.cpu(), expected, strict=True):
            if not request.is_over:
                assert torch.equal(row, edited), request
        unknown = drawn.on_device is not None
        self.batch.append(rows, np.full(len(rows), UNKNOWN) if unknown else drawn.token_ids)
        self.under_way = drawn, requests


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_logits_are_edited_as_if_computed_anew(
    make_sampler: Callable[[], Sampler[Any]], data: st.DataObject
) -> None:
    world = World(make_sampler())
    kinds, tokens = st.sampled_from(KINDS), st.integers(0, VOCAB - 1)
    prompts = st.lists(tokens, min_size=1, max_size=6)
    for number in range(data.draw(st.integers(2, 9))):
        while len(world.running) < NUM_ROWS and data.draw(st.booleans()):
            if world.waiting and data.draw(st.booleans()):
                world.add(world.waiting.pop())
                continue
            name = f"{number}-{len(world.running)}"
            params = SamplingParams(temperature=0.0, **data.draw(kinds))
            world.add(Request(name, data.draw(prompts), params))
        order = data.draw(st.permutations(world.running))
        launched = order[: data.draw(st.integers(0, len(order)))]
        world.take_result()  # of the step before, once this one is launched
        # Who had to leave may come back from now on: its token is known.
        world.waiting += [request for request in world.leaving if not request.is_over]
        world.leaving = []
        if launched:
            world.draw(launched)
        for request in list(world.running):
            left = data.draw(st.sampled_from(["stays", "stays", "aborted", "preempted"]))
            if request.is_over or left != "stays":
                world.drop(request)
            if left == "preempted":
                world.leaving.append(request)


def test_a_step_that_goes_on_sends_no_edits(
    make_sampler: Callable[[], Sampler[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither waits for the tokens of the one before, where they stay on the device."""
    world, sent = World(make_sampler()), []
    if isinstance(world.sampling._sampler, TorchSampler):
        pytest.skip("sends all of them")
    to_device = transfer.to_device
    for module in ("transfer", "triton.counts", "triton.edits", "triton.table"):
        patched = f"pellucid.sample.{module}.to_device"
        monkeypatch.setattr(patched, lambda v, d: sent.append(v) or to_device(v, d))
    requests = [
        Request("a", [1, 2], SamplingParams(temperature=0.0, repetition_penalty=1.2)),
        Request("b", [1], SamplingParams(presence_penalty=0.5, logit_bias={3: 1.0}, min_tokens=9)),
        Request("c", [7], SamplingParams(allowed_token_ids=[1, 2, 3], frequency_penalty=1.0)),
    ]
    for request in requests:
        world.add(request)
    by_step = []
    for _ in range(4):
        sent.clear()
        world.take_result()
        world.draw(requests)
        assert world.under_way is not None
        assert world.under_way[0].on_device is not None
        by_step.append(len(sent))
    assert by_step[0] > 0
    assert by_step[1:] == [0, 0, 0]
