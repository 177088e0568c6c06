"""The bar for downloads."""

from __future__ import annotations

import pytest

from pellucid.load.progress import DownloadBar


def test_draws_on_stderr_once_bytes_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    with DownloadBar():
        pass
    assert capsys.readouterr() == ("", "")
    with DownloadBar() as bar:
        bar("model.gguf", 500_000, None)
        bar("model.gguf", 1_000_000, 2_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "model.gguf" in err
    assert "1.0/2.0 MB" in err
