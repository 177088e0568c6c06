from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from pellucid.kernels import native
from tests.cli.helpers import Pellucid
from tests.runner.fake_llama import FakeLlama


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def examine(pellucid: Pellucid, *arguments: str) -> tuple[int, dict[str, Any]]:
    outcome = pellucid("doctor", "--json", *arguments)
    return outcome.code, json.loads(outcome.out)


def test_healthy_machine(pellucid: Pellucid, fake_model: Path, free_port: int) -> None:
    import torch

    arguments = (str(fake_model), "--port", str(free_port), "--threads", "1")
    code, found = examine(pellucid, *arguments)
    assert found["problems"] == []
    assert code == 0
    assert found["machine"]["logical_cores"] == os.cpu_count()
    assert found["machine"]["ram_total_mib"] == psutil.virtual_memory().total >> 20
    assert found["machine"]["cpu"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["compute"]["threads"] == 1
    chosen = found["compute"]["kernels"]
    assert any(k["name"] == chosen and k["available"] for k in found["kernels"])
    assert found["model"]["path"] == str(fake_model)
    assert found["model"]["context"] == 2048
    assert found["address"] == {"host": "127.0.0.1", "port": free_port, "free": True}


@pytest.mark.parametrize(
    ("flags", "guesses"),
    [
        (["--kernels", "reference"], "none"),
        (["--kernels", "reference", "--speculative", "ngram"], "ngram"),
        (["--kernels", "native"], "ngram"),
        (["--kernels", "native", "--async-scheduling"], "none"),
        (["--kernels", "triton", "--speculative", "ngram"], None),
    ],
)
def test_who_guesses_is_said(
    pellucid: Pellucid,
    fake_model: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    guesses: str | None,
) -> None:
    from pellucid.kernels import dispatch

    # Chosen without being there: what a machine has is another test's business.
    monkeypatch.setattr(dispatch, "select_ops", lambda name, *_: SimpleNamespace(name=name))
    code, found = examine(pellucid, str(fake_model), "--port", str(free_port), *flags)
    if guesses is None:
        assert code == 1
        assert "--speculative does not work with --kernels triton" in found["problems"][0]
    else:
        assert (code, found["compute"]["speculative"]) == (0, guesses)


def test_llama_cpp_is_looked_for(
    pellucid: Pellucid, fake_model: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(fake_model), "--port", str(free_port), "--runner", "llama-cpp")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    code, found = examine(pellucid, *arguments)
    assert code == 1
    assert "pellucid[llamacpp]" in found["problems"][0]
    monkeypatch.setitem(sys.modules, "llama_cpp", FakeLlama())
    code, found = examine(pellucid, *arguments)
    assert (code, found["compute"]["kernels"]) == (0, "llama-cpp-python 0")
    # 2 layers, keys and values of 2 heads of 16, 2 bytes each.
    assert found["memory"]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert found["memory"]["kv_pool_tokens"] <= 32_768


def test_memory_is_what_the_settings_ask_for(
    pellucid: Pellucid, fake_model: Path, free_port: int
) -> None:
    settings = ("--dtype", "float32", "--num-kv-blocks", "1024", "--block-size", "32")
    _, found = examine(pellucid, str(fake_model), "--port", str(free_port), *settings)
    # 2 layers, keys and values of 2 heads of 16, 4 bytes each.
    assert found["memory"]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert found["memory"]["kv_pool_tokens"] == 1024 * 32
    assert found["memory"]["kv_pool_mib"] == 1024 * 32 * 512 >> 20


def test_ranks_share_the_weights_and_have_a_pool_each(
    pellucid: Pellucid, fake_model: Path, free_port: int
) -> None:
    arguments = [str(fake_model), "--port", str(free_port), "--device", "cpu"]
    arguments += ["--kernels", "reference", "--num-kv-blocks", "1024"]
    _, one = examine(pellucid, *arguments)
    code, two = examine(pellucid, *arguments, "-tp", "2")
    assert (code, two["problems"]) == (0, [])
    assert (one["compute"]["ranks"], two["compute"]["ranks"]) == (1, 2)
    assert two["memory"]["kv_bytes_per_token"] == one["memory"]["kv_bytes_per_token"]
    assert pellucid("doctor", *arguments, "-tp", "2").out.count("2 ranks") == 1
    assert "ranks" not in pellucid("doctor", *arguments).out
    code, found = examine(pellucid, *arguments, "-tp", "64")
    assert code == 1
    assert "cannot be divided among 64" in found["problems"][0]


def test_taken_port_is_a_problem(pellucid: Pellucid, fake_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, found = examine(pellucid, str(fake_model), "--port", str(port))
    assert code == 1
    assert found["address"]["free"] is False
    assert found["problems"] == [f"127.0.0.1:{port} is taken or not this machine's: use --port"]


def test_missing_model_is_a_problem_and_the_rest_is_told(
    pellucid: Pellucid, free_port: int, tmp_path: Path
) -> None:
    missing = str(tmp_path / "no.gguf")
    code, found = examine(pellucid, missing, "--port", str(free_port))
    assert code == 1
    assert found["model"] is None
    assert len(found["problems"]) == 1
    assert "no.gguf" in found["problems"][0]
    assert found["compute"] is not None


def test_kernels_that_are_missing_are_a_problem(
    pellucid: Pellucid, fake_model: Path, free_port: int
) -> None:
    arguments = (str(fake_model), "--port", str(free_port), "--device", "cpu")
    code, found = examine(pellucid, *arguments, "--kernels", "triton")
    assert code == 1
    assert "triton" in found["problems"][0]


def test_works_without_torch(fake_model: Path, free_port: int) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pellucid.cli import main\n"
        f"main(['doctor', {str(fake_model)!r}, '--port', '{free_port}', '--json'])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    found = json.loads(answer.stdout)
    assert answer.returncode == 1
    assert len(found["problems"]) == 1
    assert found["problems"][0].startswith("torch cannot be imported")
    assert found["compute"] is None
    assert found["model"]["architecture"] == "llama"


def test_is_readable(pellucid: Pellucid, fake_model: Path, free_port: int) -> None:
    outcome = pellucid("doctor", str(fake_model), "--port", str(free_port))
    for word in ("CPU", "RAM", "versions", "kernels", "model", "address"):
        assert f"\n{word}" in f"\n{outcome.out}"


@pytest.mark.model
def test_counts_the_real_models_parameters(
    pellucid: Pellucid, smollm2_path: Path, free_port: int
) -> None:
    arguments = (str(smollm2_path), "--port", str(free_port), "--dtype", "bfloat16")
    _, found = examine(pellucid, *arguments, "--kernels", "reference")
    assert found["model"]["parameters"] == 134_515_008
    assert found["memory"]["weights_mib"] == 134_515_008 * 2 >> 20
    assert found["memory"]["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 2


@pytest.mark.model
@pytest.mark.skipif(native.obstacle(torch.device("cpu")) is not None, reason="not built")
def test_native_kernels_keep_a_file_as_small_as_it_is(
    pellucid: Pellucid, smollm2_path: Path, free_port: int
) -> None:
    arguments = (str(smollm2_path), "--port", str(free_port), "--dtype", "float32")
    _, wide = examine(pellucid, *arguments, "--kernels", "native")
    assert wide["memory"]["weights_mib"] == smollm2_path.stat().st_size >> 20
    _, narrow = examine(pellucid, *arguments, "--kernels", "native", "--kv-cache-dtype", "bfloat16")
    sizes = [found["memory"]["kv_bytes_per_token"] for found in (wide, narrow)]
    assert sizes[0] == 2 * sizes[1]
