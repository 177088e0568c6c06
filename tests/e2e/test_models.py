"""Several models in one server, with real engines: what is loaded is what there is memory for."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.serving import base_url, started

pytestmark = pytest.mark.model

QUESTION = {"messages": [{"role": "user", "content": "Count from one to five."}]}


def answer(url: str, name: str) -> str:
    body = {"model": name, "temperature": 0, "max_tokens": 16, **QUESTION}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    told = response.json()
    assert told["model"] == name
    content: str = told["choices"][0]["message"]["content"]
    return content


def states(url: str) -> dict[str, str]:
    return {m["id"]: m["status"] for m in httpx.get(f"{url}/v1/models").json()["data"]}


@pytest.mark.timeout(300)
def test_two_models_take_turns_in_memory_for_one(smollm2_path: Path) -> None:
    models = [f"--model={name}={smollm2_path}" for name in ("one", "two")]
    with started(*models, "--model-memory-gib", "1", "--max-model-len", "512") as (curl, server):
        url, process = base_url(curl), psutil.Process(server.pid)
        assert states(url) == {"one": "loaded", "two": "unloaded"}
        (first,) = process.children()
        told = answer(url, "one")
        assert answer(url, "two") == told
        (second,) = process.children()
        assert second.pid != first.pid
        assert states(url) == {"one": "unloaded", "two": "loaded"}
        unloaded = httpx.post(f"{url}/v1/models/unload", json={"model": "two"}, timeout=30)
        assert unloaded.json()["status"] == "unloaded"
        assert process.children() == []
        assert answer(url, "one") == told
        children = process.children()
    assert psutil.wait_procs(children, timeout=30)[1] == []
