"""Clients that dawdle, certificates, web pages, and bounds on what one request may hold."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pellucid.config import AccessSettings, ServerConfig
from pellucid.errors import ConfigError
from pellucid.server.gateway.tls import check_certificate
from tests.server.live import Live, live

TEXT = "/v1/completions"
USUAL = 20.0  # seconds that a head may take where nothing is set, and a body more
IMPATIENT = {"head_timeout": 0.5, "body_timeout": 0.5}


@pytest.fixture(scope="module", params=["httptools", "h11"])
def impatient(request: pytest.FixtureRequest) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "h11":
            patch.setitem(sys.modules, "uvicorn.protocols.http.httptools_impl", None)
        with live(gateway=IMPATIENT) as site:
            yield site


def connect(site: Live) -> socket.socket:
    url = httpx.URL(site.url)
    connection = socket.create_connection((url.host, url.port))
    connection.settimeout(60)
    return connection


def receive(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


def is_closed(connection: socket.socket, drip: bytes = b"") -> bool:
    """Whether the server closes early on a client that sends `drip` now and then."""
    began = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - began < USUAL / 2:
        try:
            if drip:
                connection.sendall(drip)
            if connection.recv(65536) == b"":
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize("drip", [b"", b"\r\n", b"X"])
@pytest.mark.parametrize(
    "beginning", [b"", b"POST /v1/completions HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nA: b"]
)
def test_a_head_that_does_not_end_closes_the_connection(
    impatient: Live, beginning: bytes, drip: bytes
) -> None:
    if drip == b"\r\n" and beginning:
        pytest.skip("that would end the head")
    began = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(beginning)
        assert is_closed(connection, drip)
        # What is no head at all may be refused at once.
        assert drip or time.monotonic() - began > 0.9 * IMPATIENT["head_timeout"]
    assert impatient.http.get("/health").status_code == 200


@pytest.mark.parametrize("drip", [b"\r\n", b"G"])
def test_so_does_one_on_a_connection_that_was_used(impatient: Live, drip: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(connection, b'"ok"}').startswith(b"HTTP/1.1 200")
        time.sleep(0.8)  # resting between two requests is not dawdling
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(connection, b'"ok"}').startswith(b"HTTP/1.1 200")
        connection.sendall(drip)
        assert is_closed(connection)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_does_not_arrive_is_a_408(impatient: Live, declared: bool) -> None:
    framing = b"Content-Length: 100" if declared else b"Transfer-Encoding: chunked"
    with connect(impatient) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + framing
            + b"\r\n\r\n"
            + (b'{"prompt"' if declared else b'9\r\n{"prompt"\r\n')
        )
        answer = receive(connection, b"body_timeout")
        assert answer.startswith(b"HTTP/1.1 408")
        assert is_closed(connection, b"x" if declared else b"")


def test_an_answer_that_takes_long_is_not_a_slow_request() -> None:
    with live(runner={"step_seconds": 0.02}, gateway=IMPATIENT) as site:
        response = site.post(TEXT, prompt="x", max_tokens=60, ignore_eos=True)
        assert response.json()["usage"]["completion_tokens"] == 60


def test_a_conversation_has_bounded_messages() -> None:
    with live(ServerConfig(max_messages=3)) as site:
        message = {"role": "user", "content": "x"}
        path = "/v1/chat/completions"
        assert site.post(path, messages=[message] * 3, max_tokens=1).status_code == 200
        for route in (path, "/tokenize"):
            refused = site.post(route, messages=[message] * 4)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "messages"
            assert "at most 3" in refused.json()["error"]["message"]


# ---- web pages


def test_pages_of_allowed_origins_may_call_and_read() -> None:
    settings = {"cors_origin": ["https://app.example"], "api_key": ["sk-0123456789"]}
    with live(gateway=settings) as site:
        ask = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = site.http.options(TEXT, headers=ask)  # browsers send no key with it
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in preflight.headers
        refused = site.http.post(TEXT, json={}, headers={"Origin": "https://app.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()
        other = site.http.options(TEXT, headers=ask | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_without_origins_no_page_may(site: Live) -> None:
    response = site.http.get("/health", headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers


# ---- HTTPS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
    )
    return cert, key


def test_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with live(gateway={"ssl_certfile": str(cert), "ssl_keyfile": str(key)}) as site:
        url = site.url.replace("http://", "https://")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=url, verify=context) as client:
            assert client.get("/health").status_code == 200
            with client.stream(
                "POST", TEXT, json={"prompt": "x", "max_tokens": 3, "stream": True}
            ) as response:
                assert response.read().endswith(b"data: [DONE]\n\n")
        with pytest.raises(httpx.HTTPError):
            site.http.get("/health")


def test_a_certificate_that_cannot_be_used_is_told(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = map(str, certificate)
    check_certificate(AccessSettings(ssl_certfile=cert, ssl_keyfile=key))
    other = tmp_path / "other.pem"
    locked = tmp_path / "locked.pem"
    make = ["openssl", "genpkey", "-algorithm", "RSA", "-out"]
    subprocess.run([*make, str(other)], check=True, capture_output=True)
    secret = ["-aes256", "-pass", "pass:secret"]
    subprocess.run([*make, str(locked), *secret], check=True, capture_output=True)
    wrong = {
        "ssl_certfile": [
            AccessSettings(ssl_certfile=str(tmp_path / "none.pem")),
            AccessSettings(ssl_certfile=key, ssl_keyfile=key),
            AccessSettings(ssl_certfile=cert),
            AccessSettings(ssl_certfile=cert, ssl_keyfile=str(other)),
            AccessSettings(ssl_certfile=cert, ssl_keyfile=str(locked)),
        ],
        "ssl_keyfile": [
            AccessSettings(ssl_certfile=cert, ssl_keyfile=str(tmp_path / "none.pem")),
            AccessSettings(ssl_keyfile=key),
        ],
    }
    for name, cases in wrong.items():
        for settings in cases:
            with pytest.raises(ConfigError) as caught:
                check_certificate(settings)
            assert caught.value.param == name
