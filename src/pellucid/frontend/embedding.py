"""Vectors of prompts, as the engine's answers bring them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import PellucidError, RequestTimeout
from pellucid.frontend.outputs import Completion, Delta
from pellucid.sampling_params import SamplingParams

# Parameters of a request that pools; greedy, since the answer cache takes what no chance is in.
NOTHING_SAMPLED = SamplingParams(max_tokens=None, temperature=0.0)


def vector_of(answer: Delta | Completion, *, normalize: bool) -> NDArray[np.float32]:
    """The vector [hidden_size] that a request with `pooling` ended with; of length 1 if so asked.

    Raises:
        RequestTimeout: the deadline passed before it was there.
        PellucidError: the engine could not make it, or the request was aborted.
    """
    if answer.finish_reason == "timeout":
        raise RequestTimeout("The request timed out.", param="timeout", code="timeout")
    if answer.embedding is None:
        raise PellucidError(answer.error or "The request was aborted.")
    vector = np.frombuffer(answer.embedding, "<f4")
    if not normalize:
        return vector
    length = np.linalg.norm(vector)
    return vector / length if length > 0.0 else vector  # zeros have no direction
