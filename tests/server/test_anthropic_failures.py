"""Failures as the real `anthropic` client sees them."""

from __future__ import annotations

import threading
from typing import Any

import anthropic
import pytest
from anthropic.types.shared import ErrorResponse

from pellucid.messages import TokenDelta
from tests.frontend.tiny import ScriptedClient
from tests.server.live import Live, eventually, leaving, live
from tests.server.test_anthropic_client import ASK, MESSAGES, strictly


def test_a_key_opens_and_its_lack_is_an_authentication_error() -> None:
    with live(gateway={"api_key": ["alice:sk-alice-0123456789"]}) as site:
        assert site.anthropic("sk-alice-0123456789").messages.create(**ASK).content
        with pytest.raises(anthropic.AuthenticationError) as caught:
            site.anthropic("sk-wrong-0123456789").messages.create(**ASK)
    assert caught.value.type == "authentication_error"
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        (MESSAGES, {**ASK, "model": "other"}, 404, "not_found_error"),
        (f"{MESSAGES}/batches", {}, 404, "not_found_error"),
        (MESSAGES, {**ASK, "max_tokens": "x"}, 400, "invalid_request_error"),
        (MESSAGES, {**ASK, "system": "x" * 70_000}, 413, "request_too_large"),
    ],
)
def test_errors_have_anthropics_shape(
    site: Live, path: str, body: Any, status: int, kind: str
) -> None:
    response = site.post(path, **body)
    assert response.status_code == status
    error = response.json()
    if kind != "request_too_large":  # documented, but the client has no class for it
        strictly(ErrorResponse, error)
    assert error["error"]["type"] == kind
    assert error["request_id"] == response.headers["request-id"]


def test_a_full_queue_is_overloaded() -> None:
    slow = {"step_seconds": 0.05}
    with live(runner=slow, max_num_seqs=1, max_waiting=1) as site:
        ask = {**ASK, "max_tokens": 400}
        with leaving(site.url, MESSAGES, **ask), leaving(site.url, MESSAGES, **ask):
            assert eventually(lambda: site.llm.num_unfinished == 2)
            with pytest.raises(anthropic.RateLimitError) as caught:
                site.anthropic().messages.create(**ASK)
        assert caught.value.type == "overloaded_error"
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    script = ScriptedClient()
    with live(client=script) as site:

        def speak() -> None:
            assert eventually(lambda: len(script.added) == 1)
            delta = TokenDelta(request_id=script.added[0].request_id, token_ids=[70])
            site.call(lambda: script.feed(delta))

        speaker = threading.Thread(target=speak)
        speaker.start()
        with site.anthropic().messages.stream(**ASK) as stream:
            assert next(stream.text_stream)
            site.call(script.die)
            with pytest.raises(anthropic.APIStatusError) as caught:
                stream.until_done()
        speaker.join()
        assert caught.value.type == "api_error"
        strictly(ErrorResponse, caught.value.body)
        with pytest.raises(anthropic.ServiceUnavailableError):
            site.anthropic().messages.create(**ASK)
