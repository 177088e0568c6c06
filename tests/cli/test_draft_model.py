"""What the command line says of a draft model that is not to be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.helpers import Pellucid

ASK = ("--prompt", "x", "--max-tokens", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speculative", "draft"], "--speculative draft needs a --draft-model"),
        (["--draft-model", "x"], "--draft-model is for --speculative draft"),
        (["--draft-model", "x", "--speculative", "ngram"], "--draft-model is for --speculative"),
        (
            ["--draft-model", "x", "--speculative", "draft", "--tensor-parallel-size", "2"],
            "--draft-model does not work with --tensor-parallel-size",
        ),
        (["--draft-model", "nowhere", "--speculative", "draft"], "no model 'nowhere'"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "serve"])
def test_settings_that_do_not_fit_are_named(
    command: str, arguments: list[str], message: str, pellucid: Pellucid, fake_model: Path
) -> None:
    asked = ASK if command == "generate" else ()
    outcome = pellucid(command, str(fake_model), "--runner", "fake", *arguments, *asked)
    assert outcome.code != 0
    assert outcome.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ("fake", "--speculative draft is for --runner torch"),
        ("llama-cpp", "--speculative is not for --runner llama-cpp"),
    ],
)
def test_runners_that_have_none_are_named(
    runner: str, message: str, pellucid: Pellucid, fake_model: Path
) -> None:
    draft = ("--speculative", "draft", "--draft-model", str(fake_model))
    outcome = pellucid("generate", str(fake_model), "--runner", runner, *draft, *ASK)
    assert outcome.code == 2
    assert message in outcome.err


def test_another_vocabulary_is_refused(
    pellucid: Pellucid, fake_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(fake_model, other)
    whole = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = whole["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    draft = ("--speculative", "draft", "--draft-model", str(other))
    outcome = pellucid("generate", str(fake_model), *draft, *ASK)
    assert outcome.code != 0
    assert "--draft-model other has another vocabulary" in outcome.err


def test_doctor_counts_the_memory_of_both(pellucid: Pellucid, fake_model: Path) -> None:
    sizes = ("--dtype", "float32", "--num-kv-blocks", "64", "--kernels", "reference")
    arguments = ("doctor", "--json", str(fake_model), *sizes)
    plain = json.loads(pellucid(*arguments).out)
    draft = ("--speculative", "draft", "--draft-model", str(fake_model))
    found = json.loads(pellucid(*arguments, *draft).out)
    assert found["draft_model"]["path"] == str(fake_model)
    assert plain["draft_model"] is None
    for name in ("weights_mib", "kv_bytes_per_token"):
        assert found["memory"][name] == pytest.approx(2 * plain["memory"][name], abs=1)
    missing = json.loads(pellucid(*arguments, *draft[:3], "nowhere").out)
    assert any("nowhere" in problem for problem in missing["problems"])
