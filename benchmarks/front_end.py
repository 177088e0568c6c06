"""What a streamed token costs the front end: CPU time of its process, without a model.

`pellucid serve --runner fake` answers CLIENTS streams at once, at 2,000 tokens/s (a step of 32
tokens every 16 ms) and as fast as it can; and one stream at 500. Its CPU time is read before and
after, so parsing the requests, tokenising the prompts and ending the answers are in the figure. The
clients are bare sockets in this process: an HTTP library would take more than what is measured.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.report import save
from benchmarks.serving import serving

PROMPT_TOKENS = 128
ANSWER_TOKENS = 128
RUNS = 3
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": [100 + i for i in range(PROMPT_TOKENS)]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tell a story. " * 25}]},
}


@dataclass(frozen=True)
class Load:
    name: str
    clients: int
    answers_per_client: int
    step_ms: float  # the fake engine sleeps that long

    @property
    def num_tokens(self) -> int:
        return self.clients * self.answers_per_client * ANSWER_TOKENS


LOADS = (
    Load("32 streams, 2,000 tokens/s", 32, 5, 15.0),
    Load("32 streams, unpaced", 32, 15, 0.0),
    Load("1 stream, 500 tokens/s", 1, 12, 1.8),
)


class Client:
    """A connection that reads one streamed answer after the other."""

    def __init__(self, port: int, request: bytes, num_answers: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.num_left = num_answers
        self.num_events = 0
        self._request = request
        self._tail = b""
        self.socket.sendall(request)

    def read(self) -> bool:
        """Read what is there; return whether the last answer has ended."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise SystemExit(f"the server hung up: {self._tail!r}")
        self.num_events += data.count(b"data: ")
        self._tail = (self._tail + data)[-64:]
        if not self._tail.endswith(b"\r\n0\r\n\r\n"):
            return False
        if b"data: [DONE]" not in self._tail:
            raise SystemExit(f"an answer ended without [DONE]: {self._tail!r}")
        self.num_left -= 1
        if self.num_left:
            self.socket.sendall(self._request)
        return self.num_left == 0


def run(load: Load, server: psutil.Process, port: int, path: str) -> dict[str, float]:
    """One round of all clients; CPU time is of the server's process alone, all its threads."""
    request = post(path, {**BODIES[path], "max_tokens": ANSWER_TOKENS, "ignore_eos": True})
    begin, cpu_begin = time.perf_counter(), server.cpu_times()
    clients = [Client(port, request, load.answers_per_client) for _ in range(load.clients)]
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while selector.get_map():
            for key, _ in selector.select():
                if key.data.read():
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
    seconds, cpu_end = time.perf_counter() - begin, server.cpu_times()
    user, system = cpu_end.user - cpu_begin.user, cpu_end.system - cpu_begin.system
    return {
        "tokens_per_s": load.num_tokens / seconds,
        "cpu_us_per_token": (user + system) / load.num_tokens * 1e6,
        "user_us_per_token": user / load.num_tokens * 1e6,
        "system_us_per_token": system / load.num_tokens * 1e6,
        "cpu_share": (user + system) / seconds,
        "events_per_token": sum(client.num_events for client in clients) / load.num_tokens,
    }


def post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps({**body, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def main() -> None:
    results = []
    for load in LOADS:
        flags = f"--runner fake --fake-step-ms {load.step_ms} --max-num-seqs {load.clients}"
        with serving(*flags.split()) as (server, port):
            for path in BODIES:
                run(load, server, port, path)  # warm
                runs = [run(load, server, port, path) for _ in range(RUNS)]
                median = sorted(runs, key=lambda figures: figures["cpu_us_per_token"])[RUNS // 2]
                results.append({"load": asdict(load), "path": path, "median": median, "runs": runs})
                print(
                    f"{load.name:28} {path:22} {median['tokens_per_s']:6.0f} tokens/s"
                    f" {median['cpu_us_per_token']:6.1f} us/token"
                    f" (system {median['system_us_per_token']:.1f})"
                )
    save("front_end", results, prompt_tokens=PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS, runs=RUNS)
