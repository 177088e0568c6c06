"""A draft model has to mean the same by a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pellucid.config import CacheSettings, EngineConfig, SchedulerSettings
from pellucid.engine.client import InProcessClient
from pellucid.engine.core import EngineCore
from pellucid.errors import ConfigError
from pellucid.frontend.async_engine import AsyncLLM
from pellucid.frontend.vocabulary import check_draft_vocabulary
from pellucid.load.files import ModelFiles
from pellucid.runner.fake import FakeRunner
from tests.frontend.running import run
from tests.frontend.tiny import save_tokenizer, thinking_text, tiny_text


def saved(folder: Path, **changed: str) -> ModelFiles:
    """The tiny tokenizer, with some of its tokens written otherwise."""
    save_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = whole["model"]["vocab"]
    for name, other in changed.items():
        vocabulary[name], vocabulary[other] = vocabulary[other], vocabulary[name]
    file.write_text(json.dumps(whole), encoding="utf-8")
    return ModelFiles("hf", folder, "small")


def test_the_same_is_fine_and_so_is_a_longer_one(tmp_path: Path) -> None:
    files = saved(tmp_path)
    check_draft_vocabulary(files, tiny_text().tokenizer)
    check_draft_vocabulary(files, thinking_text().tokenizer)  # has two tokens more


def test_the_first_token_that_differs_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_text().tokenizer
    files = saved(tmp_path, x="y")
    first = tokenizer.token_id("x")
    with pytest.raises(ConfigError, match=rf"--draft-model small .* token {first} is b'y'") as told:
        check_draft_vocabulary(files, tokenizer)
    assert told.value.param == "draft_model"


def test_an_engine_does_not_start_with_another_vocabulary(tmp_path: Path) -> None:
    saved(tmp_path, a="b")

    async def body() -> None:
        def core() -> EngineCore:
            return EngineCore(FakeRunner(), CacheSettings(), SchedulerSettings())

        config = EngineConfig.of(speculative="draft", draft_model=str(tmp_path))
        llm = AsyncLLM(config, InProcessClient(core), text=tiny_text())
        with pytest.raises(ConfigError, match="another vocabulary"):
            await llm.start()
        assert not llm.alive

    run(body())
