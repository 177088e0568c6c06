from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.cli.helpers import Pellucid

QUESTION = ("--prompt", "Hello", "--max-tokens", "12", "--seed", "1", "--ignore-eos")


def generate(pellucid: Pellucid, model: Path, *arguments: str) -> dict[str, object]:
    outcome = pellucid("generate", str(model), "--runner", "fake", "--json", *arguments)
    assert outcome.code == 0, outcome.err
    answer: dict[str, object] = json.loads(outcome.out)
    return answer


def test_json_tells_counts_and_timings(pellucid: Pellucid, fake_model: Path) -> None:
    answer = generate(pellucid, fake_model, *QUESTION)
    assert answer["completion_tokens"] == 12
    assert answer["finish_reason"] == "length"
    assert answer["text"]
    for timing in ("ttft_seconds", "prefill_tokens_per_s", "decode_tokens_per_s"):
        assert float(str(answer[timing])) > 0


def test_text_goes_to_stdout_and_numbers_to_stderr(pellucid: Pellucid, fake_model: Path) -> None:
    expected = generate(pellucid, fake_model, *QUESTION)
    outcome = pellucid("generate", str(fake_model), "--runner", "fake", *QUESTION)
    assert outcome.out == f"{expected['text']}\n"
    assert "tokens/s" in outcome.err


def test_prompt_from_stdin(
    pellucid: Pellucid, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(pellucid, fake_model, *QUESTION)
    for prompt in (("--prompt", "-"), ()):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
        assert generate(pellucid, fake_model, *prompt, *QUESTION[2:])["text"] == expected["text"]


def test_no_prompt_is_bad_usage(
    pellucid: Pellucid, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    outcome = pellucid("generate", str(fake_model), "--runner", "fake")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--prompt: give a text" in outcome.err


def test_raw_skips_the_template(pellucid: Pellucid, fake_model: Path) -> None:
    raw = generate(pellucid, fake_model, "--raw", *QUESTION)
    templated = generate(pellucid, fake_model, *QUESTION)
    with_system = generate(pellucid, fake_model, "--system", "Be brief.", *QUESTION)
    counts = [int(str(a["prompt_tokens"])) for a in (raw, templated, with_system)]
    assert counts[0] < counts[1] < counts[2]
    assert len({str(a["text"]) for a in (raw, templated, with_system)}) == 3


def test_seed_and_stop_reach_the_engine(pellucid: Pellucid, fake_model: Path) -> None:
    first = generate(pellucid, fake_model, *QUESTION)
    other = generate(pellucid, fake_model, *QUESTION, "--seed", "2")
    assert first["text"] != other["text"]
    text = str(first["text"])
    stopped = generate(pellucid, fake_model, *QUESTION, "--stop", text[10:14], "--stop", "never")
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == text[: text.index(text[10:14])]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--top-p", "0", "--top-p must be above 0"),
        ("--temperature", "-1", "--temperature must be from 0 to 2"),
        ("--max-tokens", "0", "--max-tokens must be at least 1"),
        ("--max-tokens", "x", "--max-tokens: Expected int"),
        ("--max-model-len", "0", "--max-model-len: Expected int >= 1"),
    ],
)
def test_bad_value_names_the_flag(
    flag: str, value: str, message: str, pellucid: Pellucid, fake_model: Path
) -> None:
    arguments = ("generate", str(fake_model), "--runner", "fake", "--prompt", "x", flag, value)
    outcome = pellucid(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")


def test_prompt_beyond_the_context_is_bad_usage(pellucid: Pellucid, fake_model: Path) -> None:
    outcome = pellucid(
        *("generate", str(fake_model), "--runner", "fake", "--max-model-len", "16"),
        *("--prompt", "word " * 100),
    )
    assert outcome.code == 2
    assert "16" in outcome.err


@pytest.mark.model
def test_real_model_answers(pellucid: Pellucid, smollm2_path: Path) -> None:
    outcome = pellucid(
        *("generate", str(smollm2_path), "--json", "--dtype", "float32", "--temperature", "0"),
        *("--raw", "--prompt", "The capital of France is", "--max-tokens", "3"),
    )
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    assert answer["text"].startswith(" Paris")
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (5, 3)
