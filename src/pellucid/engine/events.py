"""What happened in a step, for whoever watches: timelines, traces, recordings, a live page.

One `StepEvents` per step, built by `engine/recorder.py` and only while somebody listens. It speaks
in differences. A request has a number, given when it is queued; all later events refer to it. Who
joins late starts from a `Snapshot`, the state before the step it comes with: there is one when the
set of listeners has changed and every `SNAPSHOT_STEPS` steps. Encoded as msgpack arrays; times are
`time.monotonic()` seconds.

What the blocks do follows from the events (`detail` says that ids are there):

- a `Share` appends `block_ids` to its request's table; `Admitted.num_found_tokens` says how many of
  the first ones were found in the prefix cache, all others were taken from the free list,
- `Preempted` and `Finished` free the request's whole table,
- blocks in `StepEvents.forgotten` lose their names, then those in `named` gain one.

So a block is shared if two tables list it, and cached but free if it has a name and no table.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SNAPSHOT_STEPS = 1024

Wait = Literal[
    "seats",  # max_num_seqs requests run already
    "budget",  # the step's tokens are spent on others
    "blocks",  # no free KV blocks
    "prefix",  # another request is computing the very prefix it needs
    "grammar",  # its grammar is being compiled
    "turn",  # one before it does not fit, and nobody overtakes
]


class _Event(msgspec.Struct, array_like=True, omit_defaults=True):
    """Positional; defaults at the tail are left out."""


class Queued(_Event):
    """A request reached the engine."""

    number: int
    request_id: str
    time: float
    num_prompt_tokens: int
    max_total_tokens: int
    adapter: str = ""  # name of its LoRA adapter, if it has one


class Admitted(_Event):
    """A request left the queue for the running set."""

    number: int
    num_found_tokens: int  # in the prefix cache
    is_return: bool = False  # from a preemption


class Share(_Event):
    """A request's part of a step: tokens [start, start + num_tokens) of its sequence."""

    number: int
    start: int
    num_tokens: int
    is_prefill: bool
    num_generated: int
    num_blocks: int = 0  # added to its table
    block_ids: list[int] = []  # these blocks; with detail
    token_ids: list[int] = []  # generated; only if asked for
    num_drafts: int = 0  # of num_tokens, the last ones, which were guesses

    @property
    def num_accepted(self) -> int:
        """Guesses that were right: what was generated but for the token behind them."""
        return max(0, self.num_generated - 1) if self.num_drafts else 0

    @property
    def num_computed(self) -> int:
        """Tokens whose K/V are there for good; those behind a wrong guess are written again."""
        return self.num_generated if self.num_drafts else self.num_tokens


class Stall(_Event):
    """A request that got no share of the step."""

    number: int
    why: Wait


class Preempted(_Event):
    """A request gave up its blocks and went back to the queue."""

    number: int
    num_blocks: int


class Finished(_Event):
    """A request left the engine. `reason` is the engine's: a stop string is its "abort"."""

    number: int
    reason: str
    time: float
    num_output_tokens: int
    num_blocks: int = 0  # freed


class Pool(_Event):
    """The KV blocks after the step."""

    num_used: int  # held by requests
    num_free: int  # the rest, of which some still hold a prefix
    num_named: int  # hold a prefix that can be found, held or free


class Live(_Event):
    """A request between two steps."""

    queued: Queued
    is_running: bool
    num_tokens: int
    num_computed_tokens: int
    num_preemptions: int
    num_blocks: int
    block_ids: list[int] = []  # with detail


class Snapshot(_Event):
    """Everything that the differences add up to."""

    requests: list[Live]
    named: list[int] = []  # blocks with a name; with detail
    detail: bool = False


class StepEvents(_Event):
    """One step. Its parts follow each other: idle, schedule, draft, forward, sample, update.

    A step without shares executed nothing; it only tells of requests that came or left.
    """

    step: int
    time: float  # when schedule began
    idle_seconds: float  # from the end of the step before
    schedule_seconds: float
    forward_seconds: float
    sample_seconds: float
    update_seconds: float  # the rest, until the step's end
    pool: Pool
    shares: list[Share] = []
    queued: list[Queued] = []
    admitted: list[Admitted] = []
    first_tokens: list[int] = []  # numbers of the requests
    finished: list[Finished] = []
    preempted: list[Preempted] = []
    stalls: list[Stall] = []
    queue_waits_for: Wait | None = None  # every waiting request that `stalls` does not name
    forgotten: list[int] = []  # blocks whose prefix cannot be found any more; with detail
    named: list[int] = []  # blocks whose prefix can be found from now on; with detail
    snapshot: Snapshot | None = None  # the state before all of the above
    draft_seconds: float = 0.0  # spent on guessing tokens

    @property
    def end(self) -> float:
        parts = self.schedule_seconds + self.draft_seconds + self.forward_seconds
        return self.time + parts + self.sample_seconds + self.update_seconds


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(StepEvents).decode
