"""A small model's text half, and an engine that a test writes the lines for."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

from pellucid.config import EngineConfig, ModelSettings
from pellucid.engine.client import InProcessClient
from pellucid.engine.core import EngineCore
from pellucid.errors import EngineDead
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.text import ModelText, load_text
from pellucid.frontend.tokenizer import Tokenizer
from pellucid.load.files import ModelFiles
from pellucid.messages import (
    Abort,
    AddRequest,
    Command,
    EngineInfo,
    StepOutput,
    StepStats,
    TokenDelta,
)
from pellucid.runner.fake import FakeRunner

VOCAB_SIZE = 600
THINKING_VOCAB_SIZE = 602
SPECIALS = ["<pad>", "<bos>", "<eos>"]
EOS = 2
LETTERS = range(67, 93)  # a to z: others are half a character, or nothing at all
CORPUS = (
    "Once upon a time there was a little engine that could be seen through. "
    "It read one word, and another word, and it never forgot a friend. "
    "Größe, naïve café, 東京, 🙂🙃 — every letter counts. 0123456789 "
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 600 tokens: three special ones, then bytes, then merges."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([CORPUS * 3], trainer)
    raw.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@lru_cache
def tiny_text() -> ModelText:
    """The text half of a model with that tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_tokenizer(path)
        (path / "config.json").write_text(json.dumps({"eos_token_id": EOS}))
        return load_text(ModelFiles("hf", path, "tiny"), ModelSettings())


@lru_cache
def thinking_text(*, special: bool = False) -> ModelText:
    """The same with a token for each marker of thoughts, a control token if it is `special`."""
    tokenizer = tiny_text().tokenizer
    raw = RawTokenizer.from_str(tokenizer.raw.to_str())
    raw.add_tokens([AddedToken(marker, special=special) for marker in ("<think>", "</think>")])
    thinking = Tokenizer(
        raw,
        vocab_size=THINKING_VOCAB_SIZE,
        special_tokens=tokenizer.special_tokens,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    return ModelText("tiny", thinking, ChatTemplate(CHAT_TEMPLATE, {}))


def engine_info(**fields: Any) -> EngineInfo:
    base: dict[str, Any] = {
        "model": "tiny",
        "architecture": "fake",
        "dtype": "none",
        "device": "none",
        "kernels": "none",
        "vocab_size": VOCAB_SIZE,
        "max_model_len": 256,
        "eos_token_ids": [EOS],
        "num_kv_blocks": 256,
        "block_size": 16,
    }
    return EngineInfo(**{**base, **fields})


def fake_client(config: EngineConfig, **runner: Any) -> InProcessClient:
    """The real engine core around a FakeRunner that speaks the tiny tokenizer's tokens."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "answer_vocab": range(3, 550),
        "eos_token_ids": (EOS,),
        "max_model_len": 512,
    }
    return InProcessClient(
        lambda: EngineCore(FakeRunner(**{**settings, **runner}), config.cache, config.scheduler)
    )


def step(*deltas: TokenDelta, at: float | None = None) -> StepOutput:
    now = time.monotonic() if at is None else at
    return StepOutput(
        deltas=list(deltas),
        stats=StepStats(step=1, time=now, num_running=1, num_waiting=0, kv_blocks_used=0),
    )


class ScriptedClient:
    """An `EngineClient` that records commands and yields what the test feeds it."""

    def __init__(self, **info: Any) -> None:
        self.commands: list[Command] = []
        self.closed = False
        self._info = engine_info(**info)
        self._steps: asyncio.Queue[StepOutput | EngineDead] = asyncio.Queue()
        self._dead = False

    async def start(self) -> EngineInfo:
        return self._info

    def send(self, command: Command) -> None:
        if self._dead:
            raise EngineDead("the scripted engine is dead")
        self.commands.append(command)

    async def outputs(self) -> AsyncIterator[StepOutput]:
        while True:
            item = await self._steps.get()
            if isinstance(item, EngineDead):
                raise item
            yield item

    @property
    def alive(self) -> bool:
        return not self._dead and not self.closed

    async def close(self) -> None:
        self.closed = True

    def feed(self, *deltas: TokenDelta) -> None:
        self._steps.put_nowait(step(*deltas))

    def die(self) -> None:
        self._dead = True
        self._steps.put_nowait(EngineDead("the scripted engine is dead"))

    @property
    def added(self) -> list[AddRequest]:
        return [c for c in self.commands if isinstance(c, AddRequest)]

    @property
    def aborted(self) -> list[list[str]]:
        return [c.request_ids for c in self.commands if isinstance(c, Abort)]
