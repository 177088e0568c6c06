"""What a request forbids, against transformers' processors and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
)

from pellucid.sample.constraints import Constraints, apply_bans, apply_bias

VOCAB = 50


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4))


def known(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def banned_ids(logits: torch.Tensor, row: int) -> list[int]:
    return torch.isneginf(logits[row]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    "sequence", [[1], [1, 2], [9, 1, 2], [2, 1], [4, 4], [4, 4, 4], [7, 2], [30]], ids=str
)
def test_bad_words_equal_transformers(sequence, logits):
    words = [[3], [1, 2, 3], [1, 2, 7], [2, 5], [4, 4, 4], [1, 9], [20, 21, 22, 23, 24, 25]]
    ids = torch.tensor([sequence])
    expected = NoBadWordsLogitsProcessor(words, eos_token_id=0)(ids, logits[1:2].clone())
    others = logits[[0, 2]].clone()
    constraints = Constraints(bad_words=words)
    apply_bans(logits, 1, constraints, constraints.banned(known(*sequence), num_generated=1))
    assert torch.equal(logits[1:2], expected)
    assert torch.equal(logits[[0, 2]], others)


@pytest.mark.parametrize("num_generated", [0, 2, 3, 4])
def test_min_tokens_equals_transformers(num_generated, logits):
    prompt = [5, 6]
    ids = torch.tensor([prompt + [8] * num_generated])
    oracle = MinNewTokensLengthLogitsProcessor(len(prompt), 3, eos_token_id=[2, 49])
    expected = oracle(ids, logits[1:2].clone())
    constraints = Constraints(end_token_ids=[2, 49], min_tokens=3)
    banned = constraints.banned(ids[0].numpy().astype(np.int32), num_generated)
    apply_bans(logits, 1, constraints, banned)
    assert torch.equal(logits[1:2], expected)


def test_only_allowed_tokens_are_left_as_they_were(logits):
    before = logits.clone()
    apply_bans(logits, 2, Constraints(allowed_token_ids=[7, 3, 7, 49]), [])
    assert banned_ids(logits, 2) == [i for i in range(VOCAB) if i not in (3, 7, 49)]
    assert torch.equal(logits[2, [3, 7, 49]], before[2, [3, 7, 49]])
    assert torch.equal(logits[:2], before[:2])


def test_a_ban_wins_over_an_allowance_and_over_a_bias(logits):
    constraints = Constraints(
        allowed_token_ids=[3, 4], bad_words=[[3]], logit_bias={3: 100.0, 4: -1.5}
    )
    expected = logits[0, 4] - 1.5
    apply_bias(logits, 0, constraints)
    apply_bans(logits, 0, constraints, constraints.banned(known(), 0))
    assert banned_ids(logits, 0) == [i for i in range(VOCAB) if i != 4]
    assert logits[0, 4] == expected


def test_bias_is_added_to_its_row_alone(logits):
    expected = logits.clone()
    expected[1, 0] += 100.0
    expected[1, 49] -= 2.5
    apply_bias(logits, 1, Constraints(logit_bias={0: 100.0, 49: -2.5}))
    assert torch.equal(logits, expected)


def test_constraints_that_forbid_nothing_are_false():
    assert not Constraints()
    assert not Constraints(end_token_ids=[1], min_tokens=0)
    assert Constraints(end_token_ids=[1], min_tokens=1)
    assert Constraints(allowed_token_ids=[1])
    assert Constraints(bad_words=[[1]])
    assert Constraints(logit_bias={1: 0.5})
