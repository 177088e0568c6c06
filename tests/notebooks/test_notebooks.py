"""The notebooks run from the top to the end, on a tiny model, and show what they say they do."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.frontend.tiny import VOCAB_SIZE, save_tokenizer
from tests.tiny_models import make_hf

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
pytestmark = pytest.mark.slow  # each starts a Python with torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama whose text half works."""
    folder = tmp_path_factory.mktemp("tiny")
    make_hf("llama", folder, vocab_size=VOCAB_SIZE, max_position_embeddings=2048)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def environment(model: Path) -> Iterator[dict[str, str]]:
    """Of a kernel that keeps its files and sockets in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        places = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
        yield {**os.environ, **dict.fromkeys(places, folder), "PELLUCID_MODEL": str(model)}


def outcome(name: str, environment: dict[str, str], *variables: str) -> list[Any]:
    """Run a notebook to its end; what these variables hold then, as JSON keeps it."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    probe = f"import json; print(json.dumps([{', '.join(variables)}]))"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    runtime = environment["JUPYTER_RUNTIME_DIR"]
    manager = AsyncKernelManager(
        kernel_name="python3", transport="ipc", connection_file=f"{runtime}/kernel.json"
    )
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv[0] = sys.executable  # whatever else is installed on this machine
    NotebookClient(notebook, km=manager, timeout=200).execute(env=environment)
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
    found: list[Any] = json.loads(notebook.cells[-1].outputs[-1].text)
    return found


def test_kv_cache(environment: dict[str, str]) -> None:
    same, positions, lengths, survived, remembered, at_24_bits = outcome(
        "kv-cache",
        environment,
        *("same_text", "positions", "[len(prompt), NUM_TOKENS]", "survived", "remembered"),
        "[setattr(Rounded, 'bits', 24), agreement('rounded')][1]",
    )
    prompt, count = lengths
    assert same
    assert positions["none"] == sum(prompt + i for i in range(count))
    assert positions["paged"] == positions["contiguous"] == prompt + count - 1
    # How far a random model's text gets on few bits is chance; on float32's it is all the way.
    assert survived["2"] < at_24_bits == count
    assert remembered[str(prompt + count)] == count > remembered[str(prompt)]


def test_batching(environment: dict[str, str]) -> None:
    same, answers, seats, static, continuous, texts = outcome(
        "batching",
        environment,
        *("same_text", "answers", "SEATS", "static_steps", "continuous_steps", "continuous"),
    )
    assert same
    assert [len(texts[str(i)]) for i in range(len(answers))] == answers
    assert static == sum(max(answers[i : i + seats]) for i in range(0, len(answers), seats))
    assert continuous < static


def test_prefix_cache(environment: dict[str, str]) -> None:
    same, asked, found, by_pool = outcome(
        "prefix-cache",
        environment,
        *("same_text", "[one[1:3] for one in asked]", "found", "by_pool"),
    )
    assert same
    assert asked[0][1] == 0
    assert all(0 < cached < tokens for tokens, cached in asked[1:])
    assert found == sorted(found)
    assert found[-1] > 0
    # Of a prompt of 238 tokens, 14 whole blocks can be found where both users' fit.
    assert by_pool["16"] == [0] * 8
    assert by_pool["32"] == [0, 0, *[14 * 16] * 6]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
