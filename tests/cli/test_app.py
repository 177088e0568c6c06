from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pellucid import __version__
from pellucid.cli import explain
from pellucid.cli.settings import settings_of
from pellucid.config import EngineConfig, ServerConfig
from pellucid.errors import BadRequest, ConfigError
from tests.cli.helpers import Pellucid


def test_version(pellucid: Pellucid) -> None:
    outcome = pellucid("--version")
    assert (outcome.code, outcome.out) == (0, f"pellucid {__version__}\n")


def test_help_names_every_command(pellucid: Pellucid) -> None:
    outcome = pellucid("--help")
    assert outcome.code == 0
    for command in ("serve", "chat", "generate", "pull", "models", "bench", "doctor"):
        assert f" {command} " in outcome.out


def test_serve_help_shows_every_setting_in_its_panel(
    pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    help_text = pellucid("serve", "--help").out
    for panel in ("Model", "KV cache", "Scheduler", "Runner", "Server"):
        assert f"─ {panel} ─" in help_text
    for setting in (*settings_of(EngineConfig), *settings_of(ServerConfig)):
        assert f"{setting.flag} " in help_text
    assert "(default: smollm2-135m)" in help_text
    assert "hf:org/name[:file]" in help_text  # not taken for markup


def test_help_needs_no_heavy_import() -> None:
    check = (
        "import sys; from pellucid.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'uvicorn', 'tokenizers', 'httpx', 'yaml'}\n"
        "print('loaded:', sorted(heavy & sys.modules.keys()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "loaded: []"


def test_module_runs_as_a_program() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pellucid", "serve", "--port", "x"], capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stderr == "error: --port: Expected int, got 'x'\n"
    assert answer.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--no-such-flag"],
        ["nonsense"],
        ["serve", "--max-num-seqs", "0"],
        ["generate", "--prompt", "x", "--temperature", "3", "--runner", "fake"],
        ["generate", "--prompt", "x", "--raw", "--system", "y"],
        ["bench", "throughput", "--runner", "fake", "--batch-size", "65"],
        ["bench", "serve", "--endpoint", "tea"],
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], pellucid: Pellucid) -> None:
    outcome = pellucid(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


def test_missing_model_is_one_line_and_exit_code_1(pellucid: Pellucid, tmp_path: Path) -> None:
    outcome = pellucid("generate", str(tmp_path / "no.gguf"), "--prompt", "x", "--offline")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert "no.gguf" in outcome.err
    assert outcome.err.count("\n") == 1


def test_debug_shows_the_traceback(pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_DEBUG", "1")
    with pytest.raises(ConfigError):
        pellucid("serve", "--port", "x")


def test_explain_writes_a_field_as_its_flag() -> None:
    wrong = BadRequest("top_p must be above 0, got 0.0", param="top_p")
    assert explain(wrong) == "--top-p must be above 0, got 0.0"
    assert explain(ConfigError("--port: wrong", param="port")) == "--port: wrong"
    assert "a bug" in explain(KeyError("x"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    import os

    answer = subprocess.run(
        [sys.executable, "-c", "from pellucid.cli import main; main()"],
        env={**os.environ, "_PELLUCID_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0
    assert "_PELLUCID_COMPLETE" in answer.stdout


def completions(words: str) -> list[str]:
    import os

    answer = subprocess.run(
        [sys.executable, "-c", "from pellucid.cli import main; main()"],
        env={
            **os.environ,
            "_PELLUCID_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
    )
    return answer.stdout.split()


def test_completion_knows_commands_flags_and_choices() -> None:
    assert completions("pellucid se") == ["serve"]
    assert completions("pellucid serve --max-num-s") == ["--max-num-seqs"]
    assert completions("pellucid serve --dtype b") == ["bfloat16"]
