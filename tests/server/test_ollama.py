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
from pellucid.messages import TokenDelta, unpack_tokens
from pellucid.runner.fake import expected_answer
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
    first, second = (text_of(unpack_tokens(added.prompt)) for added in script.added)
    assert '"arguments": {"x": 1}' in first
    assert '"arguments": {"x": 2}' in first
    assert "31 degrees" in first
    assert "sunny" in first
    assert first.startswith(second.removesuffix("assistant:"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_aborts_its_answer(stream: bool) -> None:
    script = ScriptedClient()
    with live(client=script) as site:

        async def ask(client: ollama.AsyncClient) -> None:
            answer: Any = await client.chat(MODEL, [USER], stream=stream)
            await anext(answer)

        async def hang_up() -> None:
            async with ollama.AsyncClient(site.url) as client:
                asking = asyncio.create_task(ask(client))
                while not script.added:
                    await asyncio.sleep(0.01)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(hang_up())
        (added,) = script.added
        assert eventually(lambda: script.aborted == [[added.request_id]])


# ---- failures


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
