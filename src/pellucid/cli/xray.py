"""`pellucid xray`: a recording in the page, without an engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def xray(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Recording made by `pellucid serve --record`.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on loopback; 0 is any free one.")
    ] = 0,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Look around in a recording: the page's X-ray, to be played, stopped and stepped through.

    Needs no model and no engine. A file that was cut off, because its server was killed, is shown
    up to where it ends.
    """
    import webbrowser

    from pellucid.cli.console import notes, remark
    from pellucid.observe.replay import Replay
    from pellucid.server.replay import serve_recording

    with notes().status(f"reading {file}"):
        replay = Replay(file)
    if replay.num_cut:
        remark(f"{file} is cut off: its last {replay.num_cut} bytes are no whole step")

    def on_ready(url: str) -> None:
        seconds = replay.end - replay.begin
        notes().print(
            f"{file}: {replay.num_steps} steps, {replay.totals.finished} finished requests in "
            f"{seconds:.1f} s\nLook at it: {url}/",
            markup=False,
            soft_wrap=True,
        )
        if open_page and _has_screen():
            webbrowser.open(url)

    try:
        serve_recording(replay, port, on_ready)
    finally:
        replay.close()


def _has_screen() -> bool:
    """Otherwise a browser in text mode could take over the terminal."""
    on_x11_or_wayland = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return on_x11_or_wayland or sys.platform in ("darwin", "win32")
