"""API keys: who gets in, by what, and what nobody ever sees."""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from pellucid.config import AccessSettings
from pellucid.errors import ConfigError, Unauthorized
from pellucid.server.gateway import auth
from pellucid.server.gateway.auth import KeyRing, parse_keys, presented_key
from tests.server.live import Live, eventually, live

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789"
BODY = {"prompt": "Once", "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Live]:
    with live(gateway={"api_key": [f"alice:{ALICE}", BOB]}) as site:
        yield site


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [bearer(ALICE), bearer(BOB), {"Authorization": f"bearer {BOB}"}, {"x-api-key": ALICE}],
)
def test_every_key_opens_by_every_way(guarded: Live, headers: dict[str, str]) -> None:
    assert guarded.http.post("/v1/completions", json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        bearer("wrong-key-entirely"),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(f"alice:{ALICE}"),
        bearer(f"{ALICE},{BOB}"),
        {"Authorization": f"Basic {ALICE}"},
        {"x-api-key": "wrong-key-entirely"},
        {**bearer("wrong-key-entirely"), "x-api-key": ALICE},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_anything_else_is_a_401(guarded: Live, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    response = guarded.http.post("/v1/completions", json=BODY, headers=raw)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_api_key", "missing_api_key")
    assert set(error) == {"message", "type", "param", "code"}


def test_the_official_client_sees_an_authentication_error(guarded: Live) -> None:
    with guarded.openai("sk-wrong-wrong-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}]
            )
        assert caught.value.code == "invalid_api_key"
    with guarded.openai(ALICE) as client:
        assert client.models.list().data[0].id == "tiny"


def test_only_probes_are_open(guarded: Live) -> None:
    document = guarded.http.get("/openapi.json", headers=bearer(ALICE)).json()
    open_routes = set()
    for path, operations in document["paths"].items():
        for method in operations:
            if guarded.http.request(method, path, json={}).status_code != 401:
                open_routes.add((method, path))
    assert open_routes == {("get", "/health"), ("get", "/live"), ("get", "/ready")}
    for path in ("/openapi.json", "/metrics", "/nowhere", "/v1", "//health", "/health/", "/docs"):
        assert guarded.http.get(path).status_code == 401, path
    for method in ("POST", "OPTIONS", "DELETE"):
        assert guarded.http.request(method, "/health").status_code == 401
    assert guarded.http.head("/health").status_code == 200
    assert guarded.http.head("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models?/health",
        "/v1/models#/health",
        "/health/../v1/models",
        "/health%2f..%2fv1/models",
        "http://other/health@/v1/models",
    ],
)
@pytest.mark.parametrize("host", ["localhost", "x/health?", "localhost/health#", "/health"])
def test_no_host_or_target_talks_its_way_past(guarded: Live, target: str, host: str) -> None:
    url = httpx.URL(guarded.url)
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        connection.settimeout(5)
        answer = connection.recv(65536)
    assert answer.split()[1] in (b"401", b"400")


def test_refusals_are_counted_and_keys_never_logged(
    guarded: Live, caplog: pytest.LogCaptureFixture
) -> None:
    before = guarded.gateway.counts.refused["api_key"]
    with caplog.at_level(logging.DEBUG):
        guarded.http.post("/v1/completions", json=BODY, headers=bearer("sk-wrong-secret"))
        guarded.http.post("/v1/completions", json=BODY, headers=bearer(ALICE))
    assert guarded.gateway.counts.refused["api_key"] == before + 1
    assert "sk-wrong" not in caplog.text
    assert ALICE not in caplog.text
    assert ALICE not in repr(vars(guarded.gateway.keys))


def test_all_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(auth, "hmac", type("Spy", (), {"compare_digest": staticmethod(compare)}))
    ring = KeyRing(AccessSettings(api_key=["a:first-key-1", "b:second-key", "c:third-key-3"]))
    assert ring.name_of(b"first-key-1") == "a"
    assert len(compared) == 3  # although the first was right
    assert compared[0] == hashlib.sha256(b"first-key-1").digest()


# ---- where keys come from


def test_names_are_the_callers_or_made_of_the_hash() -> None:
    digest = hashlib.sha256(BOB.encode()).digest()
    keys = parse_keys([f"alice:{ALICE}", BOB, "alice:another-key"], "api_key")
    assert keys[digest] == f"key-{digest.hex()[:8]}"
    assert sorted(keys.values()) == sorted(["alice", "alice", keys[digest]])


@pytest.mark.parametrize(
    "entry", ["", "short", "alice:short", "has a space in it", "über-schlüssel"]
)
def test_a_bad_key_is_told_without_repeating_it(entry: str) -> None:
    with pytest.raises(ConfigError, match="key 2") as caught:
        parse_keys([ALICE, entry], "api_key")
    assert not entry or entry not in str(caught.value)
    assert ALICE not in str(caught.value)


def test_one_key_has_one_name() -> None:
    with pytest.raises(ConfigError, match="key 2 is given twice"):
        parse_keys([f"a:{ALICE}", f"b:{ALICE}"], "api_key")


def test_a_variable_may_hold_several() -> None:
    ring = KeyRing(AccessSettings(api_key=[f"a:{ALICE},b:{BOB}"]))
    assert ring.name_of(BOB.encode()) == "b"


def test_the_file_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"# people\n\nalice:{ALICE}\n")
    with live(gateway={"api_key_file": str(file)}) as site:

        def status(key: str) -> int:
            return site.http.get("/v1/models", headers=bearer(key)).status_code

        assert (status(ALICE), status(BOB)) == (200, 401)
        file.write_text(f"bob:{BOB}\n")
        assert eventually(lambda: (status(ALICE), status(BOB)) == (401, 200))
        file.write_text("bob:short\n")  # a mistake changes nothing
        assert (status(ALICE), status(BOB)) == (401, 200)
        file.unlink()
        assert (status(ALICE), status(BOB)) == (401, 200)
        file.write_text("# nobody\n")  # meant so
        assert eventually(lambda: (status(ALICE), status(BOB)) == (401, 401))


def test_a_file_that_holds_no_key_or_is_not_there_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match="cannot read"):
        KeyRing(AccessSettings(api_key_file=str(file)))
    file.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="holds no key"):
        KeyRing(AccessSettings(api_key_file=str(file)))


def test_without_keys_nobody_is_asked() -> None:
    assert KeyRing(AccessSettings()).is_open
    guarded = KeyRing(AccessSettings(api_key=[ALICE]))
    assert not guarded.is_open
    with pytest.raises(Unauthorized):
        guarded.name_of(presented_key([]))
