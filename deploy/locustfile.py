"""Load with streamed chats, in the manner of people: ask, read, think, ask again.

    pip install locust
    locust -f deploy/locustfile.py --headless -u 32 -r 8 -t 1m -H http://127.0.0.1:8000

Locust's own line, `chat`, ends with the first byte of a stream; three more are reported: the time
to the first token, the mean time between tokens and the whole answer. PELLUCID_API_KEY is sent if
it is set.
"""

from __future__ import annotations

import json
import os
import random
import time

from locust import HttpUser, between, events, task

QUESTIONS = (
    "Why is the sky blue?",
    "Tell me a story about a lighthouse.",
    "Explain recursion to a child.",
    "What should I cook with rice and tomatoes?",
)
SYSTEM = "You are a helpful assistant. Answer briefly."  # shared, as in real life: it is cached
MAX_TOKENS = 64


class Person(HttpUser):
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        if key := os.environ.get("PELLUCID_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    @task
    def chat(self) -> None:
        body = {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": random.choice(QUESTIONS)},
            ],
            "max_tokens": MAX_TOKENS,
            "stream": True,
        }
        begin = time.perf_counter()
        arrivals: list[float] = []
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True, name="chat"
        ) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            done = False
            for line in response.iter_lines():
                if line == b"data: [DONE]":
                    done = True
                elif line.startswith(b"data: "):
                    choices = json.loads(line[6:]).get("choices") or [{}]
                    if choices[0].get("delta", {}).get("content"):
                        arrivals.append(time.perf_counter())
            if not done:
                response.failure("the stream ended without [DONE]")
                return
        _report("whole answer", 1e3 * (time.perf_counter() - begin))
        if arrivals:
            _report("time to first token", 1e3 * (arrivals[0] - begin))
        if len(arrivals) > 1:
            _report("time between tokens", 1e3 * (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1))


def _report(name: str, milliseconds: float) -> None:
    events.request.fire(
        request_type="TOKEN",
        name=name,
        response_time=milliseconds,
        response_length=0,
        exception=None,
        context={},
    )
