"""Requests and tokens a minute, for each key or address, in one process and across two."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from pellucid.server.gateway.rate_limit import address_of
from tests.frontend.tiny import tiny_text
from tests.server.gateway.conftest import RedisServer
from tests.server.live import Live, eventually, live

PATH = "/v1/completions"
PROMPT = "Once upon a time"
KEYS = ["alice:sk-alice-0123456789", "bob:sk-bob-0123456789"]


def ask(site: Live, key: str | None = None, **body: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, **body}
    return site.http.post(PATH, json=body, headers=headers)


def test_requests_beyond_the_limit_are_refused_until_the_window_moves() -> None:
    with live(gateway={"rate_limit_requests": 3}) as site:
        remaining = []
        for _ in range(3):
            response = ask(site)
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            remaining.append(response.headers["x-ratelimit-remaining-requests"])
        assert remaining == ["2", "1", "0"]
        refused = ask(site, stream=True)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        with site.openai() as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt="x")
        for path in ("/v1/models", "/metrics", "/health"):  # reading is free
            assert site.http.get(path).status_code == 200
        assert site.gateway.counts.refused["rate_limit_requests"] == 2


def test_every_key_has_its_own_minute() -> None:
    with live(gateway={"rate_limit_requests": 1, "api_key": KEYS}) as site:
        assert ask(site, "sk-alice-0123456789").status_code == 200
        assert ask(site, "sk-alice-0123456789").status_code == 429
        assert ask(site, "sk-bob-0123456789").status_code == 200


def test_tokens_of_prompts_and_answers_are_counted() -> None:
    num_prompt = len(tiny_text().tokenizer.encode(PROMPT))
    limit = 2 * num_prompt + 5 + 1
    with live(gateway={"rate_limit_tokens": limit}) as site:
        first = ask(site)
        assert first.headers["x-ratelimit-limit-tokens"] == str(limit)
        assert first.headers["x-ratelimit-remaining-tokens"] == str(limit - num_prompt)
        # One token would be left after the prompt of the second; its answer may use up more.
        second = ask(site, stream=True, max_tokens=20)
        assert second.status_code == 200
        assert second.headers["x-ratelimit-remaining-tokens"] == "1"
        assert eventually(lambda: ask(site).status_code == 429)
        third = ask(site)
        assert third.headers["x-ratelimit-remaining-tokens"] == "0"
        assert int(third.headers["retry-after"]) >= 1
        assert site.is_idle()


def test_a_refused_prompt_leaves_the_engine() -> None:
    num_prompt = len(tiny_text().tokenizer.encode(PROMPT))
    with live(gateway={"rate_limit_tokens": num_prompt + 3}) as site:
        response = ask(site, prompt=[PROMPT, PROMPT], max_tokens=200)
        assert response.status_code == 429
        assert site.llm.num_unfinished == 0


def test_a_prompt_that_no_minute_has_room_for_is_a_400() -> None:
    with live(gateway={"rate_limit_tokens": 2}) as site:
        response = ask(site)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt"
        assert "2 a minute" in response.json()["error"]["message"]


def test_without_limits_there_are_no_headers(site: Live) -> None:
    assert not [name for name in ask(site).headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("host", "charged"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("/run/socket", "/run/socket"),
    ],
)
def test_addresses_are_charged_by_who_can_hold_them(host: str, charged: str) -> None:
    assert address_of((host, 1)) == charged
    assert address_of(None) == "local"


# ---- shared by a Redis


def test_two_servers_share_their_counts(redis_server: RedisServer) -> None:
    settings = {"rate_limit_requests": 4, "rate_limit_storage": redis_server.url}
    with live(gateway=settings) as one, live(gateway=settings) as other:
        statuses = [ask(site).status_code for site in (one, other, one, other, one, other)]
        assert statuses == [200] * 4 + [429] * 2
        assert redis_server.client.keys("pellucid:limits*")


def test_a_server_whose_redis_dies_counts_alone(redis_server: RedisServer) -> None:
    settings = {"rate_limit_requests": 2, "rate_limit_storage": redis_server.url}
    with live(gateway=settings) as site:
        assert ask(site).status_code == 200
        redis_server.kill()
        assert [ask(site).status_code for _ in range(3)] == [200, 200, 429]
        assert site.gateway.counts.redis_failures == 1  # and was not asked again at once
