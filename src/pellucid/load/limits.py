"""What a model file may claim. Far above any real model, far below what would exhaust memory."""

from __future__ import annotations

VOCAB = 1 << 22
HIDDEN = 1 << 20
LAYERS = 1 << 10
HEADS = 1 << 12
EXPERTS = 1 << 10  # as csrc/program/experts.h has it
HEAD_DIM = 1 << 12
POSITION = 1 << 27
ROPE_BASE = 1e12
ROPE_FACTOR = 1e4
