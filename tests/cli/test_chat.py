from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.fake_server import Behaviour, fake_server
from tests.cli.helpers import Outcome, Pellucid


def chat(
    pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch, typed: str, *arguments: str
) -> Outcome:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return pellucid("chat", *arguments)


class TestServer:
    """Against a server, whose requests show what was remembered."""

    def talk(
        self,
        pellucid: Pellucid,
        monkeypatch: pytest.MonkeyPatch,
        typed: str,
        *arguments: str,
        behaviour: Behaviour | None = None,
    ) -> tuple[Outcome, list[list[tuple[str, str]]], Behaviour]:
        behaviour = behaviour or Behaviour()
        with fake_server(behaviour):
            url = ("--url", behaviour.url, "--max-tokens", "3")
            outcome = chat(pellucid, monkeypatch, typed, *url, *arguments)
        assert outcome.code == 0, outcome.err
        turns = [
            [(message["role"], message["content"]) for message in body["messages"]]
            for body in behaviour.bodies
        ]
        return outcome, turns, behaviour

    def test_remembers_the_turns(self, pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch) -> None:
        outcome, turns, _ = self.talk(pellucid, monkeypatch, "one\ntwo\n")
        first = [("user", "one")]
        assert turns == [first, [*first, ("assistant", "word word word "), ("user", "two")]]
        assert outcome.out.count("word word word \n") == 2
        assert "7 + 3 tokens" in outcome.err

    def test_reset_and_system(self, pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch) -> None:
        typed = "one\n/reset\ntwo\n/system Be brief.\nthree\n/system\nfour\n/quit\nfive\n"
        _, turns, _ = self.talk(pellucid, monkeypatch, typed, "--system", "Be kind.")
        assert turns == [
            [("system", "Be kind."), ("user", "one")],
            [("system", "Be kind."), ("user", "two")],
            [("system", "Be brief."), ("user", "three")],
            [("user", "four")],
        ]

    def test_unknown_command_and_empty_line_send_nothing(
        self, pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcome, turns, _ = self.talk(pellucid, monkeypatch, "/nope\n\n   \n/help\n")
        assert turns == []
        assert "there is no /nope" in outcome.err
        assert outcome.err.count("/reset         forget") == 2

    def test_sends_sampling_and_key(
        self, pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags = ("--temperature", "0.5", "--stop", "END", "--top-k", "4", "--api-key", "sk-test")
        _, _, behaviour = self.talk(pellucid, monkeypatch, "one\n", *flags)
        body = behaviour.bodies[0]
        assert (body["temperature"], body["stop"], body["top_k"]) == (0.5, ["END"], 4)
        assert "min_p" not in body  # not OpenAI's, and not asked for
        assert behaviour.headers[0]["Authorization"] == "Bearer sk-test"

    def test_refused_turn_is_forgotten(
        self, pellucid: Pellucid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        behaviour = Behaviour(faults={0: "429"})
        outcome, turns, _ = self.talk(pellucid, monkeypatch, "one\ntwo\n", behaviour=behaviour)
        assert turns == [[("user", "one")], [("user", "two")]]
        assert "the queue is full" in outcome.err


def test_no_server_is_an_error(pellucid: Pellucid) -> None:
    outcome = pellucid("chat", "--url", "http://127.0.0.1:9")
    assert outcome.code == 1
    assert "does not answer" in outcome.err


def test_local_model_keeps_the_conversation(
    pellucid: Pellucid, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (str(fake_model), "--runner", "fake", "--max-tokens", "5", "--ignore-eos")
    outcome = chat(pellucid, monkeypatch, "Hello\nHello\n/reset\nHello\n", *settings)
    assert outcome.code == 0, outcome.err
    counts = [
        int(line.split(" + ")[0]) for line in outcome.err.splitlines() if " + 5 tokens" in line
    ]
    assert len(counts) == 3
    assert counts[1] > counts[0] == counts[2]


def test_conversation_beyond_the_context_can_go_on(
    pellucid: Pellucid, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (str(fake_model), "--runner", "fake", "--max-model-len", "32", "--max-tokens", "4")
    outcome = chat(pellucid, monkeypatch, "word " * 100 + "\nHi\n", *settings)
    assert outcome.code == 0, outcome.err
    assert "/reset starts over" in outcome.err
    assert " + 4 tokens" in outcome.err


def test_ctrl_c_stops_the_answer_and_not_the_chat() -> None:
    behaviour = Behaviour(per_token=0.05)
    with fake_server(behaviour):
        process = subprocess.Popen(
            [sys.executable, "-m", "pellucid", "chat", "--url", behaviour.url],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A background job may have been started with Ctrl-C ignored, and would pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        while process.stdout.read(1) != "w":  # the answer has begun
            pass
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        out, err = process.communicate("/quit\n", timeout=30)
    assert process.returncode == 0, err
    assert "stopped" in err
    assert out.count("word") < 512
