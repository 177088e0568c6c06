"""An OpenAI-compatible server of known delays and known faults, on a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """Delays in seconds. `faults` says what the n-th POST does instead of answering."""

    first_token: float = 0.0
    per_token: float = 0.0
    owner: str = "pellucid"
    usage: bool = True
    faults: dict[int, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    clients: set[tuple[str, int]] = field(default_factory=set)  # one per connection
    url: str = ""
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def fake_server(behaviour: Behaviour) -> Iterator[Behaviour]:
    """Serve on a free port of the loopback until the block ends; sets `behaviour.url`."""
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    behaviour.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield behaviour
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        models = {"data": [{"id": "tiny", "owned_by": self.behaviour.owner}]}
        self._send_json(200, models)

    def do_POST(self) -> None:
        behaviour = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with behaviour.lock:
            fault = behaviour.faults.get(len(behaviour.bodies))
            behaviour.bodies.append({**body, "path": self.path})
            behaviour.headers.append(dict(self.headers))
            behaviour.clients.add(self.client_address)
            behaviour.in_flight += 1
            behaviour.most_in_flight = max(behaviour.most_in_flight, behaviour.in_flight)
        try:
            with suppress(ConnectionError):  # the client may have left
                self._answer(body, fault)
        finally:
            with behaviour.lock:
                behaviour.in_flight -= 1

    def _answer(self, body: dict[str, Any], fault: str | None) -> None:
        if fault == "429":
            self._send_json(429, {"error": {"message": "the queue is full"}})
            return
        if fault == "drop before":
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        time.sleep(self.behaviour.first_token)
        count = body["max_tokens"]
        for index in range(count):
            if index:
                time.sleep(self.behaviour.per_token)
            if index == 2 and fault in ("drop midway", "end midway"):
                if fault == "end midway":
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True
                return
            if index == 2 and fault == "error event":
                self._event({"error": {"message": "the engine died"}})
                break
            last = index == count - 1
            self._event({"choices": [self._choice("word ", "length" if last else None)]})
        else:
            if self.behaviour.usage:
                counts = {"prompt_tokens": 7, "completion_tokens": count}
                self._event({"choices": [], "usage": counts})
            self._chunk(b": a comment\n\ndata: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
        if self.path.endswith("/chat/completions"):
            return {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        return {"index": 0, "text": text, "finish_reason": reason}

    def _event(self, payload: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(payload).encode() + b"\n\n"
        # In two pieces: events need not end where reads do.
        self._chunk(data[:9])
        self._chunk(data[9:])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send_json(self, status: int, payload: dict[str, Any]) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
