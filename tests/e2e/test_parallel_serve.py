"""`pellucid serve --tensor-parallel-size 2` as users meet it: processes and the openai client."""

from __future__ import annotations

import concurrent.futures
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from pellucid import LLM, SamplingParams
from tests.e2e.serving import NAME, base_url, metrics, serving
from tests.frontend.tiny import VOCAB_SIZE, save_tokenizer
from tests.server.live import eventually
from tests.tiny_models import make_hf

FLAGS = ("-tp", "2", "--device", "cpu", "--kernels", "reference", "--dtype", "float32")
FLAGS += ("--threads", "2", "--num-kv-blocks", "100")
PROMPTS = [f"{word} upon a time" for word in ("Once", "Twice", "Never", "Always", "Again")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    make_hf("llama", path, vocab_size=VOCAB_SIZE, max_position_embeddings=512)
    save_tokenizer(path)
    return path


Server = tuple[str, subprocess.Popen[str]]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where servers put what they need for a while."""
    path = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(path))
        yield path


def left_in(temporary: Path) -> list[Path]:
    return list(temporary.glob("pellucid-*"))


@pytest.fixture(scope="module")
def server(folder: Path, temporary: Path) -> Iterator[Server]:
    with serving(folder, *FLAGS) as (curl, process):
        yield base_url(curl), process


def named(process: subprocess.Popen[str], module: str) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if any(module in word for word in child.cmdline())]


def ranks(process: subprocess.Popen[str]) -> tuple[psutil.Process, psutil.Process]:
    (engine,) = named(process, "pellucid.engine.process")
    (worker,) = named(process, "pellucid.runner.parallel.worker")
    return engine, worker


def complete(url: str, prompt: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    done = client.completions.create(model=NAME, prompt=prompt, max_tokens=12, temperature=0)
    return str(done.choices[0].text)


def test_answers_are_those_of_one_rank(server: Server, folder: Path) -> None:
    url, process = server
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        found = list(pool.map(lambda prompt: complete(url, prompt), PROMPTS))
    params = SamplingParams(temperature=0.0, max_tokens=12)
    with LLM(str(folder), device="cpu", kernels="reference", dtype="float32") as llm:
        expected = llm.generate(PROMPTS, params, use_progress_bar=False)
    assert found == [output.outputs[0].text for output in expected]
    assert metrics(url)["pellucid_tensor_parallel_size"] == 2
    for rank in ranks(process):
        listening = [c.laddr.ip for c in rank.net_connections() if c.status == psutil.CONN_LISTEN]
        assert set(listening) <= {"127.0.0.1"}


@pytest.mark.parametrize("which", [0, 1], ids=["rank 0", "rank 1"])
def test_a_killed_rank_ends_streams_and_is_replaced_with_all_others(
    server: Server, temporary: Path, which: int
) -> None:
    url, process = server
    expected = complete(url, "Once")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model=NAME,
        prompt="Once",
        max_tokens=450,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    before = ranks(process)
    before[which].kill()
    with pytest.raises(openai.APIError):
        list(stream)
    assert httpx.get(f"{url}/health").status_code == 503
    assert psutil.wait_procs(before, timeout=10)[1] == []
    assert eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
    assert complete(url, "Once") == expected
    assert set(ranks(process)).isdisjoint(before)
    assert len(left_in(temporary)) == 1


def test_a_rank_that_dies_while_nobody_asks_is_noticed(
    server: Server,
) -> None:
    url, process = server
    engine, worker = ranks(process)
    worker.kill()
    assert psutil.wait_procs([engine], timeout=10)[1] == []
    assert eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
    assert complete(url, "Once")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_server_is_that_of_all_ranks(
    folder: Path, temporary: Path, number: signal.Signals
) -> None:
    before = left_in(temporary)
    with serving(folder, *FLAGS) as (curl, process):
        assert complete(base_url(curl), "Once")
        all_ranks = ranks(process)
        process.send_signal(number)
        assert process.wait(timeout=20) == (-number if number == signal.SIGKILL else 0)
        assert psutil.wait_procs(all_ranks, timeout=10)[1] == []
    assert left_in(temporary) == before
