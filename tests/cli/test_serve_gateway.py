"""`pellucid serve` as a process whose engine is killed, and which is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.helpers import Pellucid
from tests.server.live import eventually

BODY = {"prompt": "bakoni", "max_tokens": 8, "seed": 1, "ignore_eos": True}
KEY = "sk-0123456789"


class Process:
    """A server with the fake runner; `log` is what it wrote to stderr until it was ready."""

    def __init__(self, model: Path, *arguments: str, **environment: str) -> None:
        command = (sys.executable, "-m", "pellucid", "serve", str(model), "--runner", "fake")
        self.process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            if " is ready at " in line:
                self.url = line.split()[-1].removesuffix("/v1")
            if line.startswith("  -d"):
                break
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def engine(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                if "pellucid.engine.process" in child.cmdline():
                    return child
        return None

    def status(self, path: str) -> int:
        return httpx.get(self.url + path).status_code

    def is_asked(self) -> bool:
        return bool(httpx.get(f"{self.url}/load").json()["server_load"])

    def is_stopping(self) -> bool:
        try:
            return self.status("/ready") != 200
        except httpx.TransportError:
            return True

    def end(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def serving(model: Path, *arguments: str, **environment: str) -> Iterator[Process]:
    server = Process(model, *arguments, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server._reader.join(10)
        assert server.process.stderr is not None
        server.process.stderr.close()


def test_an_engine_that_is_killed_is_replaced_and_its_request_answered(fake_model: Path) -> None:
    with serving(fake_model) as server:
        url = f"{server.url}/v1/completions"
        expected = httpx.post(url, json=BODY).json()["choices"]
        engine = server.engine()
        assert engine is not None
        engine.suspend()  # so that it cannot answer before it dies
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=BODY, timeout=30))
        )
        asking.start()
        assert eventually(server.is_asked)
        engine.kill()
        asking.join(60)
        assert answers[0].status_code == 200
        assert answers[0].json()["choices"] == expected
        assert eventually(lambda: server.status("/ready") == 200)
        assert server.engine() not in (None, engine)
        assert server.end() == 0
        assert server.engine() is None


def test_a_server_whose_engines_keep_dying_gives_up_with_an_exit_code(fake_model: Path) -> None:
    with serving(fake_model, "--engine-restarts", "1") as server:
        killed: set[int] = set()

        def kill_again() -> bool:
            engine = server.engine()
            if engine is not None and engine.pid not in killed:
                killed.add(engine.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.kill()
            return server.process.poll() is not None

        assert eventually(kill_again, 30)
        assert server.end() == 1
        assert len(killed) == 2
        assert "2 times in a row; giving up" in server.log


def test_without_restarts_the_first_death_is_the_end(fake_model: Path) -> None:
    with serving(fake_model, "--engine-restarts", "0") as server:
        engine = server.engine()
        assert engine is not None
        engine.kill()
        assert server.process.wait(60) == 1


def test_sigterm_waits_for_open_streams(fake_model: Path) -> None:
    with serving(fake_model) as server:
        body = {**BODY, "max_tokens": 1500, "stream": True}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=30) as response:
            parts = response.iter_text()
            text = next(parts)
            server.process.send_signal(signal.SIGTERM)
            text += "".join(parts)
        assert text.endswith("data: [DONE]\n\n")
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_an_open_stream_does_not_hold_a_server_that_has_no_time(
    fake_model: Path, signals: int
) -> None:
    drain = "0.5" if signals == 1 else "60"
    with serving(fake_model, "--drain-timeout", drain) as server:
        engine = server.engine()
        assert engine is not None
        engine.suspend()
        asking = threading.Thread(target=_ask_and_bear_it, args=(server.url,))
        asking.start()
        assert eventually(server.is_asked)
        for _ in range(signals):
            server.process.send_signal(signal.SIGINT)
            assert eventually(server.is_stopping)  # or it would see one signal of two
        assert server.process.wait(60) == 0
        asking.join(10)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def _ask_and_bear_it(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/v1/completions", json=BODY, timeout=30)


def test_keys_by_flag_variable_and_file_and_in_no_log(fake_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("carol:sk-carol-0123456789\n")
    flags = ("--api-key-file", str(file), "--log-level", "debug")
    with serving(fake_model, *flags, PELLUCID_API_KEY=f"alice:{KEY},bob:sk-bob-0123456789") as one:
        for key in (KEY, "sk-bob-0123456789", "sk-carol-0123456789"):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{one.url}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{one.url}/v1/models").status_code == 401
        assert one.end() == 0
        assert "sk-" not in one.log
        assert "$API_KEY" in one.log  # the curl line says where the key goes


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--api-key", "short"], "--api-key"),
        (["--api-key-file", "/nowhere/keys"], "--api-key-file"),
        (["--ssl-certfile", "/nowhere/cert.pem"], "--ssl-certfile"),
        (["--ssl-keyfile", "/nowhere/key.pem"], "--ssl-keyfile"),
        (["--cache", "memcached://secret@host"], "--cache"),
        (["--rate-limit-storage", "secret"], "--rate-limit-storage"),
        (["--drain-timeout", "-1"], "--drain-timeout"),
    ],
)
def test_bad_settings_are_told_before_a_model_is_loaded(
    pellucid: Pellucid, fake_model: Path, arguments: list[str], names: str
) -> None:
    serve = ("serve", str(fake_model), "--runner", "fake", "--port", "0")
    outcome = pellucid(*serve, *arguments)
    assert outcome.code == 2
    assert names in outcome.err
    assert "secret" not in outcome.err
    assert "short" not in outcome.err
