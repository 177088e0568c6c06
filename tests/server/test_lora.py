"""Adapters behind a real server: two of them, beside their base, against peft and transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from pellucid.config import EngineConfig, HostingSettings, ServerConfig
from pellucid.engine.client import InProcessClient
from pellucid.frontend.stats import StepReport
from pellucid.messages import StepStats
from tests.frontend.tiny import VOCAB_SIZE, save_tokenizer, tiny_text
from tests.server.live import MODEL, Live, live
from tests.tiny_adapters import make_peft
from tests.tiny_models import make_hf

PROMPT = [40 + 7 * i % 300 for i in range(35)]  # two full blocks of 16, and more
COUNT = 12
TEXT = "/v1/completions"


class Shelf:
    """A model, its adapters, and what each of them says after PROMPT."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "base"
        self.updates = folder / "updates"
        self.updates.mkdir()
        model = make_hf("llama", self.base, vocab_size=VOCAB_SIZE)
        save_tokenizer(self.base)
        self.answers = {MODEL: greedy(model)}
        for seed, name in enumerate(("poet", "clerk", "later"), 1):
            place = self.updates if name == "later" else folder
            adapted = make_peft(self.base, place / name, seed=seed, r=seed + 1)
            self.answers[name] = greedy(adapted)
        self.lora = [f"{name}={folder / name}" for name in ("poet", "clerk")]
        assert len(set(map(tuple, self.answers.values()))) == 4

    @contextmanager
    def serve(self, *, updates: bool = True, **settings: Any) -> Iterator[Live]:
        folder = str(self.updates) if updates else None
        server = ServerConfig(hosting=HostingSettings(allow_lora_updates=folder))
        gateway = settings.pop("gateway", None)
        engine = {"lora": self.lora, "dtype": "float32", "threads": 1, **settings}
        config = EngineConfig.of(model=str(self.base), num_kv_blocks=64, **engine)
        client = InProcessClient.from_config(config)
        with live(server, client, text=tiny_text(), gateway=gateway, **engine) as site:
            yield site


@torch.inference_mode()
def greedy(model: Any) -> list[int]:
    answer = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=COUNT, do_sample=False, eos_token_id=None
    )
    return answer[0, len(PROMPT) :].tolist()


def ask(site: Live, name: str | None, **body: Any) -> dict[str, Any]:
    asked = {"prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
    model = {} if name is None else {"model": name}
    answer = site.post(TEXT, **model, **asked, return_token_ids=True, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def tokens(answer: dict[str, Any]) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def site(shelf: Shelf) -> Iterator[Live]:
    with shelf.serve() as running:
        yield running


def test_each_name_answers_as_pefts_model_does(shelf: Shelf, site: Live) -> None:
    for name in (MODEL, "poet", "clerk", "poet", MODEL):
        answer = ask(site, name)
        assert (answer["model"], tokens(answer)) == (name, shelf.answers[name])
    assert tokens(ask(site, None)) == shelf.answers[MODEL]


def test_a_prefix_is_found_by_who_has_the_same_adapter_alone(shelf: Shelf) -> None:
    with shelf.serve() as site:
        found = []
        for name in (MODEL, "poet", "clerk", "poet", MODEL, "clerk"):
            answer = ask(site, name)
            assert tokens(answer) == shelf.answers[name]
            found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert found == [0, 0, 0, 32, 32, 32]


def test_the_answer_cache_keeps_adapters_apart(shelf: Shelf) -> None:
    with shelf.serve(gateway={"cache": "memory"}) as site:
        for name in (MODEL, "poet", "clerk") * 2:
            assert tokens(ask(site, name)) == shelf.answers[name]
        assert site.metric("vllm:generation_tokens_total") == 3 * COUNT


def test_openais_client_lists_and_asks(shelf: Shelf, site: Live) -> None:
    client = site.openai()
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == [MODEL, "poet", "clerk"]
    extra = {name: model.model_extra or {} for name, model in listed.items()}
    assert extra["poet"]["parent"] == extra["clerk"]["parent"] == MODEL
    assert extra[MODEL]["parent"] is None
    assert extra["poet"]["root"] == "poet"
    assert client.models.retrieve("clerk").id == "clerk"
    streamed = client.completions.create(
        model="clerk", prompt=PROMPT, max_tokens=COUNT, temperature=0, stream=True
    )
    assert {chunk.model for chunk in streamed} == {"clerk"}
    with pytest.raises(openai.NotFoundError, match="'poet'"):
        client.chat.completions.create(model="ghost", messages=[{"role": "user", "content": "x"}])


def test_every_api_knows_the_names(site: Live) -> None:
    said = [{"role": "user", "content": "Once"}]
    asked: dict[str, Any] = {"model": "poet", "messages": said, "max_tokens": 5}
    texts = {}
    for name in ("poet", MODEL):
        asked |= {"model": name, "temperature": 0}
        chat = site.post("/v1/chat/completions", **asked).json()
        anthropic = site.post("/v1/messages", **asked).json()
        responses = site.post(
            "/v1/responses", model=name, input="Once", max_output_tokens=16, temperature=0
        ).json()
        options = {"num_predict": 5, "temperature": 0}
        ollama = site.post(
            "/api/chat", model=f"{name}:latest", messages=said, stream=False, options=options
        ).json()
        assert chat["model"] == anthropic["model"] == responses["model"] == name
        assert ollama["model"].removesuffix(":latest") == name
        texts[name] = chat["choices"][0]["message"]["content"]
        assert texts[name] == anthropic["content"][0]["text"] == ollama["message"]["content"]
    assert texts["poet"] != texts[MODEL]
    tags = [model["name"] for model in site.http.get("/api/tags").json()["models"]]
    assert tags == [f"{name}:latest" for name in (MODEL, "poet", "clerk")]
    assert site.post("/api/show", model="poet").status_code == 200


def test_vectors_differ_by_adapter(site: Live) -> None:
    client = site.openai()
    vectors = [
        client.embeddings.create(model=name, input="Once upon", encoding_format="float")
        for name in (MODEL, "poet", "clerk", "poet")
    ]
    assert [vector.model for vector in vectors] == [MODEL, "poet", "clerk", "poet"]
    first, second, third, fourth = (vector.data[0].embedding for vector in vectors)
    assert second == fourth
    assert first != second != third != first


def test_several_adapters_at_once_say_what_they_say_alone(shelf: Shelf, site: Live) -> None:
    from concurrent.futures import ThreadPoolExecutor

    names = [MODEL, "poet", "clerk"] * 4
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: tokens(ask(site, name)), names))
    assert answers == [shelf.answers[name] for name in names]


def test_a_time_line_tells_the_adapter(site: Live) -> None:
    for name, told in (("clerk", "clerk"), (MODEL, None)):
        answer = site.post(TEXT, model=name, prompt="Once", max_tokens=2)
        timeline = site.http.get(f"/v1/requests/{answer.json()['id']}/timeline").json()
        assert timeline["answers"][0]["adapter"] == told


def test_a_metric_tells_the_adapters_while_there_are_any(site: Live) -> None:
    def step(running: list[str], waiting: list[str]) -> None:
        stats = StepStats(step=1, time=0.0, num_running=2, num_waiting=1, kv_blocks_used=0)
        stats.running_adapters, stats.waiting_adapters = running, waiting
        site.call(lambda: site.service.metrics.on_step(StepReport(stats)))

    step(["clerk", "poet"], ["poet"])
    labels = {"running_lora_adapters": "clerk,poet", "waiting_lora_adapters": "poet"}
    assert site.metric("vllm:lora_requests_info", model_name=MODEL, **labels) > 1e9
    step([], [])
    with pytest.raises(KeyError):
        site.metric("vllm:lora_requests_info")


# ---- while the server runs


def test_an_adapter_comes_and_goes(shelf: Shelf) -> None:
    with shelf.serve() as site:
        assert site.post(TEXT, model="later", prompt="x").status_code == 404
        loaded = site.post("/v1/load_lora_adapter", lora_name="new", lora_path="later")
        assert loaded.status_code == 200, loaded.text
        assert (loaded.json()["id"], loaded.json()["parent"]) == ("new", MODEL)
        assert tokens(ask(site, "new")) == shelf.answers["later"]
        again = site.post("/v1/load_lora_adapter", lora_name="new", lora_path="later")
        assert again.status_code == 400
        gone = site.post("/v1/unload_lora_adapter", lora_name="new")
        assert (gone.status_code, gone.json()["deleted"]) == (200, True)
        assert site.post(TEXT, model="new", prompt="x").status_code == 404
        assert site.post("/v1/unload_lora_adapter", lora_name="new").status_code == 404
        # The same name again, for what another one was: nothing of the first is found.
        shutil.copytree(shelf.updates.parent / "poet", shelf.updates / "copied")
        for name in ("new", "twin"):
            body = {"lora_name": name, "lora_path": "copied"}
            assert site.post("/v1/load_lora_adapter", **body).status_code == 200
            assert tokens(ask(site, name)) == shelf.answers["poet"]
        shutil.rmtree(shelf.updates / "copied")
        site.post("/v1/unload_lora_adapter", lora_name="poet")
        assert [model["id"] for model in site.http.get("/v1/models").json()["data"]] == [
            *(MODEL, "clerk", "new", "twin")
        ]


def test_what_has_begun_is_answered_by_the_adapter_that_leaves(shelf: Shelf) -> None:
    with shelf.serve() as site:
        ask(site, "poet")
        client = site.openai()
        stream = client.completions.create(
            model="poet",
            prompt=PROMPT,
            max_tokens=60,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        heard = [next(stream)]
        assert site.post("/v1/unload_lora_adapter", lora_name="poet").status_code == 200
        heard += list(stream)
        ids = [t for chunk in heard for t in (chunk.choices[0].model_extra or {})["token_ids"]]
        assert ids[:COUNT] == shelf.answers["poet"]
        assert len(ids) == 60
        assert site.post(TEXT, model="poet", prompt="x").status_code == 404


def test_without_leave_nothing_changes(shelf: Shelf) -> None:
    with shelf.serve(updates=False) as site:
        for path, body in (
            ("/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "later"}),
            ("/v1/unload_lora_adapter", {"lora_name": "poet"}),
        ):
            refused = site.post(path, **body)
            assert refused.status_code == 403
            assert "--allow-lora-updates" in refused.json()["error"]["message"]
        assert tokens(ask(site, "poet")) == shelf.answers["poet"]


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("poet", "later", "lora_name"),
        (MODEL, "later", "lora_name"),
        ("", "later", "lora_name"),
        ("a=b", "later", "lora_name"),
        ("x" * 300, "later", "lora_name"),
        ("new", "", "lora_path"),
        ("new", ".", "lora_path"),
        ("new", "../poet", "lora_path"),
        ("new", "/etc", "lora_path"),
        ("new", "link", "lora_path"),
        ("new", "holder", "lora_path"),
        ("new", "nothing", "lora_path"),
        ("new", "later/adapter_config.json", "lora_path"),
        ("new", "nul\0l", "lora_path"),
        ("new", "x" * 5000, "lora_path"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    name: str, path: str, field: str, shelf: Shelf, site: Live
) -> None:
    link, holder = shelf.updates / "link", shelf.updates / "holder"
    if not link.is_symlink():
        link.symlink_to(shelf.updates.parent / "poet")
        holder.mkdir()
        for file in (shelf.updates.parent / "poet").iterdir():
            (holder / file.name).symlink_to(file)
    refused = site.post("/v1/load_lora_adapter", lora_name=name, lora_path=path)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, field), error
    assert str(shelf.updates) not in error["message"]


def test_models_and_adapters_do_not_share_names(shelf: Shelf) -> None:
    with (
        pytest.raises(Exception, match="has the name of another model"),
        shelf.serve(lora=[shelf.lora[0].replace("poet=", f"{MODEL}=")]),
    ):
        pass


def test_an_adapter_is_not_unloaded_as_a_model(site: Live) -> None:
    refused = site.post("/v1/models/unload", model="poet")
    assert refused.status_code == 400
    assert "unload_lora_adapter" in refused.json()["error"]["message"]
