"""The real `ollama` client against the server; answers against the fake model's known tokens."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import ollama
import pytest

from pellucid.config import ServerConfig
from pellucid.runner.fake import expected_answer
from pellucid.sampling_params import SamplingParams
from tests.frontend.tiny import ScriptedClient, tiny_text
from tests.server.live import MODEL, Live, eventually, live
from tests.server.test_reasoning import CALL, THOUGHT, Parrot

USER: Any = {"role": "user", "content": "Once upon a time"}
CHAT_TEXT = "user: Once upon a time\nassistant:"
TOOL: Any = {"type": "function", "function": {"name": "f", "description": "Does."}}
BEYOND_CLIENT = {"bytes", "id"}  # Ollama's servers send these, the client does not read them


def ids_of(text: str) -> list[int]:
    return tiny_text().tokenizer.encode(text)


def answer_to(prompt: str | list[int], count: int, seed: int) -> list[int]:
    ids = ids_of(prompt) if isinstance(prompt, str) else prompt
    return expected_answer(ids, count, seed=seed, vocab=range(3, 550))


def text_of(ids: list[int]) -> str:
    return tiny_text().tokenizer.decode(ids)


def exactly(kind: Any, payload: dict[str, Any]) -> Any:
    """`payload` as the client's model, which must know every field of it."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: known(v) for k, v in value.items() if k not in BEYOND_CLIENT}
        return [known(v) for v in value] if isinstance(value, list) else value

    parsed = kind(**payload)
    dumped = parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert dumped == known(payload)
    return parsed


def lines_of(site: Live, path: str, **body: Any) -> list[dict[str, Any]]:
    response = site.post(path, model=MODEL, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


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


# ---- answers


def test_chat(client: ollama.Client) -> None:
    done = client.chat(MODEL, [USER], options={"num_predict": 30, "seed": 4})
    assert done.model == MODEL
    assert done.message.role == "assistant"
    assert done.message.content == text_of(answer_to(CHAT_TEXT, 30, 4))
    assert (done.done, done.done_reason) == (True, "length")
    assert done.prompt_eval_count == len(ids_of(CHAT_TEXT))
    assert done.eval_count == 30
    age = datetime.now(UTC) - datetime.fromisoformat(done.created_at or "")
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_generate_goes_through_the_template_and_raw_does_not(client: ollama.Client) -> None:
    options = {"num_predict": 20, "seed": 2}
    done = client.generate(MODEL, "Once upon a time", options=options)
    assert done.response == text_of(answer_to(CHAT_TEXT, 20, 2))
    raw = client.generate(MODEL, "Once upon a time", raw=True, options=options)
    assert raw.response == text_of(answer_to("Once upon a time", 20, 2))
    assert raw.context is None
    told = client.generate(MODEL, "Once upon a time", system="Be kind.", options=options)
    assert told.response == text_of(answer_to(f"system: Be kind.\n{CHAT_TEXT}", 20, 2))


def test_a_context_is_continued(client: ollama.Client) -> None:
    options = {"num_predict": 9, "seed": 3}
    first = client.generate(MODEL, "Once upon a time", options=options)
    known = ids_of(CHAT_TEXT) + answer_to(CHAT_TEXT, 9, 3)
    assert first.context == known
    *_, last = client.generate(MODEL, "And?", context=known, stream=True, options=options)
    prompt = known + ids_of("user: And?\nassistant:")
    assert last.context == prompt + answer_to(prompt, 9, 3)
    assert last.prompt_eval_count == len(prompt)


@pytest.mark.parametrize(
    ("path", "kind", "fields"),
    [
        ("/api/chat", ollama.ChatResponse, {"messages": [USER]}),
        ("/api/generate", ollama.GenerateResponse, {"prompt": "Once"}),
        ("/api/generate", ollama.GenerateResponse, {"prompt": "Once", "raw": True}),
    ],
)
def test_a_stream_is_the_whole_in_lines(site: Live, path: str, kind: Any, fields: Any) -> None:
    fields = {**fields, "logprobs": True, "top_logprobs": 2, "model": f"{MODEL}:latest"}
    fields["options"] = {"num_predict": 40, "seed": 5}

    def said(part: Any) -> str:
        return (part.message.content if path == "/api/chat" else part.response) or ""

    response = site.post(path, **fields, stream=False)
    assert response.headers["content-type"] == "application/json"
    whole = exactly(kind, response.json())
    response = site.post(path, **fields)
    assert response.headers["content-type"] == "application/x-ndjson"
    parts = [exactly(kind, json.loads(line)) for line in response.text.splitlines()]
    *pieces, last = parts
    assert {part.model for part in parts} == {f"{MODEL}:latest"}
    assert not any(part.done or part.done_reason for part in pieces)
    assert "".join(map(said, parts)) == said(whole)
    assert [entry for part in parts for entry in part.logprobs or []] == whole.logprobs
    assert len(whole.logprobs) == 40
    assert len(whole.logprobs[0].top_logprobs) == 2
    for name in ("done", "done_reason", "prompt_eval_count", "eval_count"):
        assert getattr(last, name) == getattr(whole, name)
    assert last.eval_duration > 0


def test_async_client(site: Live) -> None:
    async def ask() -> tuple[str, str]:
        options = {"num_predict": 30, "seed": 6}
        async with ollama.AsyncClient(site.url) as client:
            whole = await client.chat(MODEL, [USER], options=options)
            parts = await client.chat(MODEL, [USER], options=options, stream=True)
            streamed = [part.message.content or "" async for part in parts]
        return whole.message.content or "", "".join(streamed)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed == text_of(answer_to(CHAT_TEXT, 30, 6))


def test_durations_are_those_of_the_steps() -> None:
    with live(runner={"step_seconds": 0.02}) as site:
        done = site.post("/api/chat", model=MODEL, messages=[USER], options={"num_predict": 5})
        *_, last = (json.loads(line) for line in done.text.splitlines())
    step = 20_000_000
    assert last["prompt_eval_duration"] >= step
    assert last["eval_duration"] >= 4 * step
    parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
    assert parts <= last["total_duration"]


SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_the_form_of_an_answer(client: ollama.Client, seed: int) -> None:
    options = {"seed": seed}
    chat = client.chat(MODEL, [USER], format=SCHEMA, options=options)
    jsonschema.validate(json.loads(chat.message.content or ""), SCHEMA)
    done = client.generate(MODEL, "Where?", format=SCHEMA, raw=True, options=options)
    jsonschema.validate(json.loads(done.response or ""), SCHEMA)
    anything = client.generate(MODEL, "Where?", format="json", options=options)
    assert (anything.response or "").startswith("{")


# ---- thoughts and calls


def test_thoughts_and_calls_are_told_apart() -> None:
    config = ServerConfig(reasoning_parser="qwen3")
    fields: dict[str, Any] = {"messages": [USER], "tools": [TOOL]}
    with live(config, client=Parrot(f"{THOUGHT}Look: {CALL}\n{CALL}")) as site:
        whole = exactly(
            ollama.ChatResponse,
            site.post("/api/chat", model=MODEL, stream=False, **fields).json(),
        )
        parts = [exactly(ollama.ChatResponse, p) for p in lines_of(site, "/api/chat", **fields)]
        hidden = ollama.Client(site.url).chat(MODEL, [USER], tools=[TOOL], think=False)
        thought = ollama.Client(site.url).generate(MODEL, "Why?", think=True)
    call = {"function": {"name": "f", "arguments": {"x": "é"}}}
    message = whole.message
    assert (message.thinking, message.content) == ("Let me\nsee.", "Look:")
    assert [c.model_dump() for c in message.tool_calls] == [call, call]
    assert whole.done_reason == "stop"
    assert "".join(p.message.thinking or "" for p in parts) == "Let me\nsee."
    assert "".join(p.message.content for p in parts) == "Look:"
    calls = [c.model_dump() for p in parts for c in p.message.tool_calls or []]
    assert calls == [call, call]
    assert hidden.message.thinking is None
    assert thought.thinking == "Let me\nsee."
    assert "<tool_call>" in (thought.response or "")


def test_a_call_that_was_cut_is_text() -> None:
    with live(client=Parrot(CALL[:-20])) as site:
        done = ollama.Client(site.url).chat(MODEL, [USER], tools=[TOOL])
    assert done.message.tool_calls is None
    assert (done.message.content or "").startswith('f {"x"')


def test_calls_and_their_results_are_sent_back() -> None:
    """As the client spells them, and as LangChain does."""
    script = Parrot("Fine.")
    earlier = {"function": {"name": "f", "arguments": {"x": 1}}}
    linked = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 2}}}
    messages: Any = [
        USER,
        {"role": "assistant", "thinking": "hm", "tool_calls": [earlier]},
        {"role": "tool", "tool_name": "f", "content": "31 degrees"},
        {"role": "assistant", "content": "", "images": [], "tool_calls": [linked]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    with live(client=script) as site:
        lines_of(site, "/api/chat", messages=messages)
        ollama.Client(site.url).chat(MODEL, messages[:3])
    first, second = (text_of(list(added.prompt_ids)) for added in map(_Added, script.added))
    assert '"arguments": {"x": 1}' in first
    assert '"arguments": {"x": 2}' in first
    assert "31 degrees" in first
    assert "sunny" in first
    assert first.startswith(second.removesuffix("assistant:"))


class _Added:
    """An AddRequest, unpacked."""

    def __init__(self, message: Any) -> None:
        from pellucid.messages import unpack_tokens

        self.prompt_ids = unpack_tokens(message.prompt)
        self.sampling: SamplingParams = message.sampling


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
        ({"context": [600]}, "prompt"),
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
    ],
)
def test_what_chat_refuses(site: Live, fields: dict[str, Any], named: str) -> None:
    assert named in refused(site, "/api/chat", **{"messages": [USER]} | fields)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/pull"])
def test_a_model_that_is_not_there(site: Live, path: str) -> None:
    assert repr(MODEL) in refused(site, path, 404, model="llama3.2")


def test_models_are_not_changed_for_clients(site: Live, client: ollama.Client) -> None:
    calls: list[Any] = [
        lambda: client.delete(MODEL),
        lambda: client.copy(MODEL, "mine"),
        lambda: client.push(MODEL),
        lambda: client.create("mine", from_=MODEL),
        lambda: client.create_blob(__file__),
    ]
    for call in calls:
        with pytest.raises(ollama.ResponseError, match="is not offered") as caught:
            call()
        assert caught.value.status_code == 403
    assert client.pull(f"{MODEL}:latest").status == "success"
    assert [part.status for part in client.pull(MODEL, stream=True)] == ["success"]


def test_every_error_has_the_shape_of_this_api(site: Live) -> None:
    for response, status in (
        (site.http.get("/api/nothing"), 404),
        (site.http.get("/api/chat"), 405),
        (site.http.post("/api/chat", content=b"{"), 415),
        (site.post("/api/chat", messages=[USER]), 400),
        (site.post("/api/generate", model=MODEL, prompt="x" * 70_000), 413),
    ):
        assert response.status_code == status, response.text
        assert set(response.json()) == {"error"}
    with live(gateway={"api_key": ["open-sesame"]}) as locked:
        with pytest.raises(ollama.ResponseError, match="API key") as caught:
            ollama.Client(locked.url).chat(MODEL, [USER])
        assert caught.value.status_code == 401
        headers = {"Authorization": "Bearer open-sesame"}
        ollama.Client(locked.url, headers=headers).chat(MODEL, [USER], options={"num_predict": 1})


def test_a_stream_that_fails_says_so_in_its_last_line() -> None:
    from pellucid.messages import TokenDelta

    script = ScriptedClient()
    with live(client=script) as site:
        parts = ollama.Client(site.url).chat(MODEL, [USER], stream=True)

        def begin() -> None:
            (added,) = script.added
            script.feed(TokenDelta(request_id=added.request_id, token_ids=ids_of("Once")))

        loop = asyncio.new_event_loop()
        task = loop.run_in_executor(None, lambda: next(parts))
        assert eventually(lambda: bool(script.added))
        site.call(begin)
        assert loop.run_until_complete(task).message.content == text_of(ids_of("Once"))
        loop.close()
        site.call(script.die)
        with pytest.raises(ollama.ResponseError, match="engine has stopped"):
            list(parts)


# ---- what is there


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
