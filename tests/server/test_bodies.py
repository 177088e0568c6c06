"""Bodies that are no request at all: broken JSON, wrong types, wrong sizes, wrong routes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.server.conftest import LIMITS
from tests.server.live import Live

JSON = {"Content-Type": "application/json"}
PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/generate",
    "/tokenize",
    "/detokenize",
]


def error_of(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def nested(depth: int) -> bytes:
    return b'{"prompt":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"prompt": "x"',
        b'{"prompt": "x",}',
        b"{'prompt': 'x'}",
        b'{"prompt": "x"} {}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\ud800\\u0041"}',
        b'{"prompt": "\\udc00"}',
        b'{"\\ud800": 1}',
        '{"prompt": "\ud800"}'.encode("utf-8", "surrogatepass"),
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "a\nb"}',
        nested(20_000),
    ],
    ids=lambda raw: repr(raw)[:40],
)
def test_what_is_no_json_is_a_400(site: Live, path: str, raw: bytes) -> None:
    error = error_of(site.http.post(path, content=raw, headers=JSON), 400)
    assert error["code"] == "invalid_json"
    assert "not valid JSON" in error["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("raw", [b"[]", b'"text"', b"5", b"null", b"true", b'[{"prompt": "x"}]'])
def test_json_that_is_no_object_is_a_400(site: Live, path: str, raw: bytes) -> None:
    error = error_of(site.http.post(path, content=raw, headers=JSON), 400)
    assert "must be a JSON object" in error["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json-patch+json"},
        {},
        {**JSON, "Content-Encoding": "gzip"},
    ],
)
def test_another_media_type_is_a_415(site: Live, path: str, headers: dict[str, str]) -> None:
    error_of(site.http.post(path, content=b'{"prompt": "x"}', headers=headers), 415)


def test_a_charset_parameter_and_capitals_are_fine(site: Live) -> None:
    headers = {
        "Content-Type": "Application/JSON; charset=UTF-8",
        "Content-Encoding": "Identity",
    }
    response = site.http.post("/tokenize", content='{"prompt": "né"}'.encode(), headers=headers)
    assert response.status_code == 200


def test_text_beyond_the_basic_plane_arrives_whole(site: Live) -> None:
    text = "🙂 東京 \u0000 \U0010ffff é"
    for raw in (text, "🙂 東京 \\u0000 \\udbff\\udfff é"):
        content = f'{{"prompt": "{raw}"}}'.replace("\u0000", "\\u0000").encode()
        tokens = site.http.post("/tokenize", content=content, headers=JSON).json()["tokens"]
        assert site.post("/detokenize", tokens=tokens).json()["prompt"] == text


@pytest.mark.parametrize("path", PATHS)
def test_a_body_beyond_the_limit_is_a_413(site: Live, path: str) -> None:
    body = {"prompt": "x" * LIMITS.max_body_bytes}
    error = error_of(site.http.post(path, json=body), 413)
    assert str(LIMITS.max_body_bytes) in error["message"]


@pytest.mark.parametrize("path", PATHS)
def test_a_chunked_body_beyond_the_limit_is_refused_while_it_is_read(site: Live, path: str) -> None:
    """The body has no end: only a server that counts while reading can answer."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(LIMITS.max_body_bytes // 4096 + 1):
            connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_within_the_limit_is_read(site: Live) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"prompt":'
        yield b' "Once"}'

    response = site.http.post("/tokenize", content=pieces(), headers=JSON)
    assert response.json()["count"] == 1


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/chat/completions/", "//health", "/docs"])
def test_an_unknown_route_is_a_404(site: Live, path: str) -> None:
    assert error_of(site.http.get(site.url + path), 404)["code"] == "unknown_route"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", path) for path in PATHS] + [("POST", "/health"), ("DELETE", "/v1/models/tiny")],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(
    site: Live, method: str, path: str
) -> None:
    response = site.http.request(method, path)
    error = error_of(response, 405)
    assert response.headers["allow"] in error["message"]


def test_a_head_that_never_ends_is_cut_off(site: Live) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        answer = b""
        try:
            for _ in range(1000):
                connection.sendall(b"X-Filler: " + b"x" * 4000 + b"\r\n")
            answer = connection.recv(4096)
        except ConnectionError:
            return  # it hung up on us
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_the_request_id_of_the_client_is_used_and_sent_back(site: Live) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/tokenize", {"foo": 1}), ("/no", {})):
        response = site.http.post(path, json=body, headers={"X-Request-Id": "abc-123"})
        assert response.headers["x-request-id"] == "abc-123"
    answer = site.http.post(
        "/v1/completions",
        json={"prompt": "x", "max_tokens": 1},
        headers={"X-Request-Id": "abc-123"},
    )
    assert answer.json()["id"] == "cmpl-abc-123"
    assert site.post("/v1/completions", prompt="x", max_tokens=1, request_id="mine").json()[
        "id"
    ] == ("cmpl-mine")


def test_every_answer_has_a_request_id_of_its_own(site: Live) -> None:
    ids = {site.http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é"])
def test_a_request_id_that_could_forge_a_log_line_is_refused(site: Live, given: str) -> None:
    headers = {"X-Request-Id": given.encode()}
    response = site.http.get("/health", headers=headers)
    assert error_of(response, 400)["param"] == "X-Request-Id"
    assert response.headers["x-request-id"] != given
