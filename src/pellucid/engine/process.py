"""The engine process: `python -m pellucid.engine.process DESCRIPTOR`, started by `ProcessClient`.

    stdin        the configuration, one JSON line; then nothing until its end, which means "stop"
    DESCRIPTOR   an inherited socket: commands come in, events go out (see `link.py`)

When the front end dies, the kernel closes the pipe to our stdin and the process ends with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import traceback
from typing import Literal

import msgspec

from pellucid.config import EngineConfig
from pellucid.engine.ahead import create_core
from pellucid.engine.core import EngineCore
from pellucid.engine.grammars import GRAMMAR_POLL
from pellucid.engine.link import EngineEnd
from pellucid.errors import ConfigError, ModelError
from pellucid.messages import EngineFailed


def run_loop(core: EngineCore, link: EngineEnd) -> None:
    """Step while there is work; block on the socket while there is none."""
    while True:
        patience = 0.0 if core.has_work else GRAMMAR_POLL if core.is_compiling else None
        for command in link.receive(patience=patience):
            core.handle(command)
        if core.has_work:
            link.send(core.step())


def main() -> None:
    link = EngineEnd(int(sys.argv[1]))
    try:
        config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        from pellucid.runner.factory import create_runner

        core = create_core(create_runner(config), config.cache, config.scheduler)
        gc.collect()
        gc.freeze()  # what lives until the end need not be visited by every collection
        link.send(core.info)
        run_loop(core, link)
    except BaseException as error:
        with contextlib.suppress(ConnectionError):  # perhaps nobody is left to hear them
            link.send(_last_words(error))
        if not isinstance(error, (ModelError, ConfigError)):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # compute threads may still hold locks that a tidy exit would wait for


def _last_words(error: BaseException) -> EngineFailed:
    kind: Literal["model", "config", "crash"] = "crash"
    if isinstance(error, ModelError):
        kind = "model"
    elif isinstance(error, ConfigError):
        kind = "config"
    text = str(error) if kind != "crash" else f"{type(error).__name__}: {error}"
    return EngineFailed(message=text, kind=kind)


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
