"""Responses that come to no good end: what their clients are told, and that nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.messages import TokenDelta
from tests.frontend.tiny import ScriptedClient
from tests.server.live import MODEL, Live, eventually, leaving, live
from tests.server.response_events import Stream, events_in
from tests.server.test_failures import Call

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": MODEL, "input": "How warm?"}


def test_an_engine_that_dies_during_a_stream_fails_the_response(
    scripted: Live, script: ScriptedClient
) -> None:
    call = Call(scripted, PATH, **ASK, stream=True)
    assert eventually(lambda: len(script.added) == 1)
    delta = TokenDelta(request_id=script.added[0].request_id, token_ids=[70])
    scripted.call(lambda: script.feed(delta))
    assert call.begun.wait(30)
    scripted.call(script.die)
    response = Stream().follow(events_in(call.result()))
    assert response["error"]["code"] == "server_error"
    assert [item["status"] for item in response["output"]] == ["incomplete"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_aborts_its_request(
    scripted: Live, script: ScriptedClient, stream: bool
) -> None:
    with leaving(scripted.url, PATH, **ASK, stream=stream):
        assert eventually(lambda: len(script.added) == 1)
    (added,) = script.added
    assert eventually(lambda: script.aborted == [[added.request_id]])


def test_an_engine_that_dies_before_a_stream_is_a_503(
    scripted: Live, script: ScriptedClient
) -> None:
    call = Call(scripted, PATH, **ASK, stream=True)
    assert eventually(lambda: len(script.added) == 1)
    scripted.call(script.die)
    assert call.result().status_code == 503
    assert call.result().json()["error"]["type"] == "engine_dead_error"


def test_a_deadline_during_a_stream_fails_the_response() -> None:
    with live(runner={"step_seconds": 0.02}) as site:
        fields: Any = {"stream": True, "timeout": 2, "ignore_eos": True}
        events = events_in(site.post(PATH, **ASK | fields))
        assert Stream().follow(events)["error"]["code"] == "server_error"
        assert site.is_idle()
