"""Which models there are, in Ollama's words, and what clients may do about them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gguf
import numpy as np
import ollama
import pytest

from pellucid.config import ModelSettings, ServerConfig
from pellucid.frontend.chat_template import ChatTemplate
from pellucid.frontend.source import find_source
from pellucid.frontend.text import ModelText
from pellucid.server.ollama.translate import FOR_EVER, keep_alive_seconds
from tests.frontend.tiny import CHAT_TEMPLATE, tiny_text
from tests.server.live import MODEL, Live, eventually, live
from tests.server.test_ollama import USER, exactly, ids_of, lines_of
from tests.server.test_reasoning import Parrot


@pytest.fixture
def two() -> Iterator[Live]:
    with live(models=("tiny", "other:1b")) as site:
        yield site


def running(site: Live) -> list[str | None]:
    return [model.name for model in ollama.Client(site.url).ps().models]


def test_version_and_a_sign_of_life(site: Live) -> None:
    assert site.http.head("/").status_code == 200
    version = site.http.get("/version").json()["version"]
    assert site.http.get("/api/version").json() == {"version": version}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_without_a_question_the_model_is_loaded(site: Live, path: str) -> None:
    (line,) = lines_of(site, path)
    assert (line["done"], line["done_reason"]) == (True, "load")
    whole = site.post(path, model=MODEL, stream=False, keep_alive=-1).json()
    assert whole.keys() == line.keys()


def test_tags_are_all_models_and_ps_those_in_memory(two: Live) -> None:
    tags = exactly(ollama.ListResponse, without_names(two.http.get("/api/tags").json()))
    assert [model.model for model in tags.models] == ["tiny:latest", "other:1b"]
    assert tags.models[0].details.family == "fake"
    assert len({model.digest for model in tags.models}) == 2
    process = two.http.get("/api/ps").json()
    (first,) = exactly(ollama.ProcessResponse, process).models
    assert (first.name, first.context_length, first.size_vram) == ("tiny:latest", 512, 0)
    assert first.size > 0
    assert first.expires_at.year > 2100
    ollama.Client(two.url).generate("other:1b")
    assert running(two) == ["tiny:latest", "other:1b"]


def without_names(listed: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    """The client reads `model` alone, others `name`."""
    for model in listed["models"]:
        assert model.pop("name") == model["model"]
    return dict(listed)


def test_what_most_of_a_file_is_held_in(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("small", np.zeros((2, 64), np.float32))
    form = gguf.GGMLQuantizationType.Q5_1
    blocks = gguf.quants.quantize(np.ones((64, 64), np.float32), form)
    writer.add_tensor("large", blocks, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = find_source(ModelSettings(model=str(tmp_path / "m.gguf")))
    assert (source.format, source.weights) == ("gguf", "Q5_1")


def test_a_model_is_shown_and_loaded_for_it(two: Live) -> None:
    raw = two.post("/api/show", model="other:1b").json()
    shown = exactly(ollama.ShowResponse, raw)
    assert shown.template == CHAT_TEMPLATE
    assert shown.modelinfo["general.architecture"] == "fake"
    assert shown.modelinfo["fake.context_length"] == 512
    assert "temperature                    0.8" in shown.parameters
    assert shown.modelfile.startswith("#")
    assert shown.capabilities == ["completion", "tools"]
    assert running(two) == ["tiny:latest", "other:1b"]
    with live(ServerConfig(reasoning_parser="qwen3")) as site:
        assert "thinking" in (ollama.Client(site.url).show(MODEL).capabilities or [])
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        ollama.Client(two.url).show("llama3.2")


def test_keep_alive_says_how_long_a_model_stays(two: Live) -> None:
    client = ollama.Client(two.url)
    client.chat("other:1b", [USER], keep_alive="1h30m", options={"num_predict": 1})
    assert eventually(lambda: left(two) is not None)
    assert timedelta(minutes=89) < (left(two) or timedelta()) <= timedelta(minutes=90)
    client.generate("other:1b", "Once", keep_alive=0, options={"num_predict": 1})
    assert eventually(lambda: running(two) == ["tiny:latest"])


def left(site: Live) -> timedelta | None:
    """Time until the second model goes."""
    model = ollama.Client(site.url).ps().models[1]
    assert model.expires_at is not None
    return None if model.expires_at.year > 2100 else model.expires_at - datetime.now(UTC)


def test_a_model_is_unloaded_and_not_loaded_for_it(two: Live) -> None:
    client = ollama.Client(two.url)
    client.generate("other:1b", keep_alive=-1)
    assert "other:1b" in running(two)
    for _ in range(2):
        done = client.chat("other:1b", keep_alive=0)
        assert (done.done, done.done_reason) == (True, "unload")
        assert eventually(lambda: running(two) == ["tiny:latest"])
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        client.chat("llama3.2", keep_alive=0)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("1h0.5m", 3630), ("+1500ms", 1.5), ("2m3us", 120.000003), (7, 7), (0.5, 0.5)],
)
def test_durations(written: str | float, seconds: float) -> None:
    assert keep_alive_seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", [-1, -0.5, "-1m", "-300ms", 1e300, 10**400, "999999999h"])
def test_for_ever(written: str | float) -> None:
    assert keep_alive_seconds(written) == FOR_EVER


def test_a_context_has_one_beginning() -> None:
    """A template that writes BOS writes it into every turn."""
    tiny = tiny_text()
    source = "<bos>" + CHAT_TEMPLATE
    text = ModelText(MODEL, tiny.tokenizer, ChatTemplate(source, tiny.tokenizer.special_tokens))
    with live(client=Parrot("Fine."), text=text) as site:
        *_, last = lines_of(site, "/api/generate", prompt="And?", context=[1, 50])
    prompt = [1, 50, *ids_of("user: And?\nassistant:")]
    assert last["context"][: len(prompt)] == prompt
