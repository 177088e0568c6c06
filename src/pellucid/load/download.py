"""Downloading one file over HTTP: resumable, checked, atomic.

Bytes gather in a `.part` file beside the target. When a connection breaks the next attempt, of this
call or of a later one, continues where it ended; only a complete file whose SHA-256 is right gets
the target's name.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Progress = Callable[[str, int, int | None], None]
"""Called as progress(what, bytes done, bytes in all or None if unknown)."""

ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
PAUSE_SECONDS = 0.5  # before the second attempt, then twice as long each time
CHUNK_BYTES = 1 << 18


class DownloadError(Exception):
    """A file could not be fetched; the message says why, in one line."""


def download(
    url: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> None:
    """Fetch `url` (http, https or file) into `target`.

    Raises:
        DownloadError: the server refuses, the connection keeps breaking, or the checksum differs.
    """
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    _gather(url, part, target.name, progress)
    if sha256 is not None and file_sha256(part) != sha256:
        part.unlink()
        if not resumed:
            raise DownloadError(f"the checksum of {target.name} is wrong")
        # The leftover may have been of another file: once more, from the start.
        download(url, target, sha256=sha256, progress=progress)
        return
    os.replace(part, target)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; a second process waits until the first is done."""
    try:
        import fcntl
    except ImportError:  # Windows: the checksum and the rename at the end must do
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _gather(url: str, part: Path, what: str, progress: Progress | None) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme == "file":
        _copy(url, part)
        return
    if scheme not in ("http", "https"):
        raise DownloadError(f"cannot fetch {url}: only http, https and file are supported")
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            if _continue(url, part, what, progress):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            problem = f"the server answers {error.code} {error.reason}"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)  # longer than the file, so of another one
            elif error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                break  # trying again would not help
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
    raise DownloadError(f"cannot fetch {what}: {problem}")


def _copy(url: str, part: Path) -> None:
    source = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        raise DownloadError(f"cannot copy {source}: {error.strerror or error}") from None


def _continue(url: str, part: Path, what: str, progress: Progress | None) -> bool:
    """Append what is missing; whether the file is complete afterwards."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends it all
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        with part.open("ab" if have else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(what, have, total)
    return total is None or have == total


def _chunks(response: IO[bytes]) -> Iterator[bytes]:
    while chunk := response.read(CHUNK_BYTES):
        yield chunk
