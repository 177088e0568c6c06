"""The resumable download, against a server that breaks off."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.load import download as module
from pellucid.load.download import DownloadError, download, exclusive
from tests.load.http_server import Site, serving

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site(files={"/model": BODY})) as running:
        yield running


def test_reports_progress_up_to_the_whole(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    download(f"{site.url}/model", tmp_path / "m", sha256=SHA256, progress=lambda *a: seen.append(a))
    assert (tmp_path / "m").read_bytes() == BODY
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1] == ("m", len(BODY), len(BODY))


def test_a_broken_connection_is_continued(site: Site, tmp_path: Path) -> None:
    site.break_after, site.breaks_left = 300_000, 2
    download(f"{site.url}/model", tmp_path / "m", sha256=SHA256)
    assert (tmp_path / "m").read_bytes() == BODY
    assert site.ranges("/model") == [None, "bytes=300000-", "bytes=600000-"]


def test_a_later_call_continues(site: Site, tmp_path: Path) -> None:
    site.break_after = 100_000
    with pytest.raises(DownloadError, match="cannot fetch m"):
        download(f"{site.url}/model", tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert (tmp_path / "m.part").stat().st_size == 500_000  # five attempts
    site.break_after = None
    site.log.clear()
    download(f"{site.url}/model", tmp_path / "m", sha256=SHA256)
    assert site.ranges("/model") == ["bytes=500000-"]
    assert (tmp_path / "m").read_bytes() == BODY
    assert not (tmp_path / "m.part").exists()


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.ignore_ranges = True
    (tmp_path / "m.part").write_bytes(BODY[:1000])
    download(f"{site.url}/model", tmp_path / "m", sha256=SHA256)
    assert (tmp_path / "m").read_bytes() == BODY


@pytest.mark.parametrize("leftover", [b"x" * 1000, BODY + b"more", BODY[:-1] + b"x"])
def test_a_leftover_of_another_file_is_replaced(
    leftover: bytes, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "m.part").write_bytes(leftover)
    download(f"{site.url}/model", tmp_path / "m", sha256=SHA256)
    assert (tmp_path / "m").read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="checksum of m is wrong"):
        download(f"{site.url}/model", tmp_path / "m", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server answers 404"):
        download(f"{site.url}/none", tmp_path / "m")
    assert len(site.log) == 1


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving(Site()) as site:
        url = f"{site.url}/model"
    with pytest.raises(DownloadError, match="refused"):
        download(url, tmp_path / "m")


def test_file_urls(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(BODY)
    download((tmp_path / "a b").as_uri(), tmp_path / "m", sha256=SHA256)
    assert (tmp_path / "m").read_bytes() == BODY
    with pytest.raises(DownloadError, match="cannot copy"):
        download((tmp_path / "none").as_uri(), tmp_path / "n")


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="only http, https and file"):
        download("ftp://localhost/model", tmp_path / "m")


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    order = []
    held, release = threading.Event(), threading.Event()

    def first() -> None:
        with exclusive(tmp_path / "lock"):
            held.set()
            release.wait(10)
            order.append("first")

    def second() -> None:
        held.wait(10)
        with exclusive(tmp_path / "lock"):
            order.append("second")

    threads = [threading.Thread(target=target) for target in (second, first)]
    for thread in threads:
        thread.start()
    held.wait(10)
    release.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]
