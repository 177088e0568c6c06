"""Ollama's options and fields: what reaches the engine, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import ollama
import pytest

from pellucid.sampling_params import SamplingParams
from tests.server.live import MODEL, Live, live
from tests.server.test_ollama import TOOL, USER, ids_of, lines_of
from tests.server.test_reasoning import Parrot


def refused(site: Live, path: str, status: int = 400, **body: Any) -> str:
    response = site.post(path, **{"model": MODEL} | body)
    assert response.status_code == status, response.text
    error = response.json()
    assert set(error) == {"error"}
    message: str = error["error"]
    return message


@pytest.fixture
def client(site: Live) -> ollama.Client:
    return ollama.Client(site.url)


# ---- options


def sampled(**body: Any) -> SamplingParams:
    """What the engine is told for a request."""
    script = Parrot("Fine.")
    with live(client=script) as site:
        lines_of(site, "/api/generate", prompt="Once", **body)
    (added,) = script.added
    return added.sampling


def test_defaults_are_those_of_ollama() -> None:
    params = sampled()
    assert (params.temperature, params.top_k, params.top_p) == (0.8, 40, 0.9)
    assert (params.min_p, params.repetition_penalty) == (0.0, 1.0)
    assert params.max_tokens == 4096 - len(ids_of("user: Once\nassistant:"))


def test_options_reach_the_engine() -> None:
    params = sampled(
        options={
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.6,
            "min_p": 0.1,
            "seed": 11,
            "stop": ["x", "y"],
            "repeat_penalty": 1.2,
            "repeat_last_n": -1,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.4,
            "num_predict": 12,
        }
    )
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 7, 0.6, 0.1)
    assert (params.seed, params.stop, params.max_tokens) == (11, ["x", "y"], 12)
    assert (params.repetition_penalty, params.presence_penalty) == (1.2, 0.3)
    assert params.frequency_penalty == 0.4


def test_no_window_means_no_penalty() -> None:
    params = sampled(options={"repeat_last_n": 0, "repeat_penalty": 1.3, "presence_penalty": 1})
    assert (params.repetition_penalty, params.presence_penalty) == (1.0, 0.0)


def test_a_seed_of_minus_one_is_any() -> None:
    assert sampled(options={"seed": -1}).seed != sampled(options={"seed": -1}).seed


@pytest.mark.parametrize(
    "fields",
    [
        {"options": None, "format": None, "keep_alive": None, "think": None, "tools": []},
        {"format": "", "think": False, "shift": False, "keep_alive": "5m", "tools": None},
        {"options": {"repeat_last_n": 64, "num_thread": 8, "num_gpu": -1, "use_mmap": True}},
        {"options": {"num_batch": 2, "numa": False, "low_vram": False, "num_keep": 5}},
        {"options": {"mirostat": 0, "mirostat_tau": 5.0, "tfs_z": 1, "typical_p": 1.0}},
        {"options": {"f16_kv": True, "penalize_newline": True, "temperature": None}},
    ],
)
def test_what_clients_send_out_of_habit(site: Live, fields: dict[str, Any]) -> None:
    options = {**(fields.get("options") or {}), "num_predict": 2}
    *_, last = lines_of(site, "/api/chat", messages=[USER], **{**fields, "options": options})
    assert last["eval_count"] == 2


@pytest.mark.parametrize("limit", [-1, -2, None, 5000])
def test_the_context_ends_an_answer(client: ollama.Client, limit: int | None) -> None:
    done = client.generate(MODEL, "Once", options={"num_predict": limit, "num_ctx": 64})
    assert (done.prompt_eval_count or 0) + (done.eval_count or 0) == 64
    assert done.done_reason == "length"


TURNS: Any = [
    {"role": role, "content": f"{i} and another word"}
    for i in range(6)
    for role in ("user", "assistant")
]


def test_the_oldest_turns_make_room(client: ollama.Client) -> None:
    """With a limit between the lengths of two and three turns, two are left and the system's."""
    system: Any = {"role": "system", "content": "Be kind."}
    options: dict[str, Any] = {"num_predict": 5, "seed": 1}
    turns = [*TURNS, USER]
    two = client.chat(MODEL, [system, *turns[-3:]], options=options)
    three = client.chat(MODEL, [system, *turns[-5:]], options=options)
    assert three.prompt_eval_count
    options["num_ctx"] = three.prompt_eval_count * 4 // 3 - 2  # of which three quarters are filled
    cut = client.chat(MODEL, [system, *turns], options=options)
    assert cut.message == two.message
    assert cut.prompt_eval_count == two.prompt_eval_count
    alone = client.chat(MODEL, turns[-1:], options={**options, "num_ctx": 22})
    longer = client.chat(MODEL, turns, options={**options, "num_ctx": 22})
    assert longer.message == alone.message  # though less than a quarter is free


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": ""}, "model"),
        ({"options": {"temperature": 2.5}}, "options.temperature"),
        ({"options": {"top_p": 0}}, "options.top_p"),
        ({"options": {"top_k": -2}}, "options.top_k"),
        ({"options": {"min_p": 2}}, "options.min_p"),
        ({"options": {"seed": 1 << 63}}, "options.seed"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ({"options": {"presence_penalty": 3}}, "options.presence_penalty"),
        ({"options": {"frequency_penalty": -3}}, "options.frequency_penalty"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"num_ctx": 513}}, "options.num_ctx must be from 1 to 512"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
        ({"options": {"repeat_last_n": 64, "repeat_penalty": 1.1}}, "options.repeat_last_n"),
        ({"options": {"repeat_last_n": -2}}, "options.repeat_last_n"),
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"typical_p": 0.7}}, "options.typical_p"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"penalize_newline": False}}, "options.penalize_newline"),
        ({"options": {"f16_kv": False}}, "options.f16_kv"),
        ({"options": {"num_threads": 2}}, "options.num_threads"),
        ({"options": {"num_thread": "many"}}, "options.num_thread"),
        ({"format": "xml"}, "format"),
        ({"format": {"type": "array", "uniqueItems": True}}, "format cannot"),
        ({"think": True}, "think"),
        ({"think": "high"}, "think"),
        ({"shift": True}, "shift"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": "5"}, "keep_alive"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"temperature": 1}, "temperature"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_field_is_refused_by_its_name(
    site: Live, path: str, fields: dict[str, Any], named: str
) -> None:
    content: dict[str, Any] = (
        {"messages": [USER]} if path == "/api/chat" else {"prompt": "x", "raw": "format" in fields}
    )
    assert named in refused(site, path, **content, **fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"images": ["aGk="]}, "images"),
        ({"width": 64}, "width"),
        ({"raw": True, "system": "x"}, "system"),
        ({"raw": True, "context": [5]}, "context"),
        ({"raw": True, "logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"context": [600]}, "context"),
        ({"context": [-1]}, "context"),
        ({"truncate": True}, "truncate"),
        ({"prompt": "word " * 600}, "prompt has"),
        ({"prompt": "word " * 600, "raw": True}, "prompt has"),
        ({"prompt": "x" * 60_000}, "prompt has"),
    ],
)
def test_what_generate_refuses(site: Live, fields: dict[str, Any], named: str) -> None:
    assert named in refused(site, "/api/generate", **{"prompt": "x"} | fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages has"),
        ({"messages": [*TURNS * 9, USER], "truncate": False}, "messages has"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        (
            {"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "user", "thinking": "x"}]}, "messages[0].thinking"),
    ],
)
def test_what_chat_refuses(site: Live, fields: dict[str, Any], named: str) -> None:
    assert named in refused(site, "/api/chat", **{"messages": [USER]} | fields)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/pull"])
def test_a_model_that_is_not_there(site: Live, path: str) -> None:
    assert repr(MODEL) in refused(site, path, 404, model="llama3.2")
