"""Names of models: paths, aliases, and the hub through a local mirror of its API."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from pellucid.config import ModelSettings
from pellucid.errors import ModelError
from pellucid.load import hub
from pellucid.load.aliases import ALIASES, HubRepo
from pellucid.load.files import ModelFiles
from tests.load.http_server import Site, serving

FOLDER = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": b"{}",
    "generation_config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 5000,
    "pytorch_model.bin": b"pickle",
    "modeling_own.py": b"raise RuntimeError",
    "onnx/config.json": b"{}",
    "README.md": b"text",
}
KEPT = {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors"}
GGUFS = {"a-Q4_0.gguf": b"GGUF4", "a-Q8_0.gguf": b"GGUF8", "config.json": b"{}"}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    repos = {"org/folder": FOLDER, "org/ggufs": GGUFS, "org/one": {"b.gguf": b"GGUF1"}}
    repos["org/pickles"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with serving(Site(repos={name: dict(files) for name, files in repos.items()})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


@pytest.fixture
def resolve(tmp_path: Path) -> Any:
    def call(model: str, **settings: Any) -> ModelFiles:
        cache = str(tmp_path / "cache")
        return hub.resolve(ModelSettings(model=model, cache_dir=cache, **settings))

    return call


# ---- paths


def test_a_gguf_file(resolve: Any, tmp_path: Path) -> None:
    (tmp_path / "My-Model.gguf").write_bytes(b"GGUF")
    files = resolve(str(tmp_path / "My-Model.gguf"), offline=True)
    assert files == ModelFiles("gguf", tmp_path / "My-Model.gguf", "My-Model")


def test_a_folder(resolve: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"neither a config\.json nor a \.gguf"):
        resolve(str(folder))
    (folder / "a.gguf").touch()
    assert resolve(str(folder)) == ModelFiles("gguf", folder / "a.gguf", "a")
    (folder / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"several models, name one: a\.gguf, b\.gguf"):
        resolve(str(folder))
    (folder / "config.json").touch()
    assert resolve(str(folder)) == ModelFiles("hf", folder, "model")


@pytest.mark.parametrize(
    ("name", "message"),
    [("m.bin", "pickles"), ("m.pt", "pickles"), ("m.safetensors", "give the folder")],
)
def test_files_that_are_no_model(name: str, message: str, resolve: Any, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "did you mean smollm2-135m"),
        ("org/name", "write hf:org/name"),
        ("./nothing.gguf", "neither an alias .* nor an existing"),
        ("a\0b", "neither an alias"),
        ("hf:name", "not of the form"),
        ("hf:org/name/more", "not of the form"),
        ("hf:org/..", "not of the form"),
        ("hf:org/name:../../x.gguf", "not of the form"),
    ],
)
def test_names_of_nothing(name: str, message: str, resolve: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve(name)
    assert caught.value.param == "model"


def test_where_downloads_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PELLUCID_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub.cache_folder(ModelSettings()) == Path.home() / ".cache" / "pellucid"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.cache_folder(ModelSettings()) == tmp_path / "pellucid"
    monkeypatch.setenv("PELLUCID_CACHE_DIR", str(tmp_path / "env"))
    assert hub.cache_folder(ModelSettings()) == tmp_path / "env"
    assert hub.cache_folder(ModelSettings(cache_dir="x")) == Path("x")


# ---- the hub


def test_a_folder_without_pickles_and_code(site: Site, resolve: Any, tmp_path: Path) -> None:
    files = resolve("hf:org/folder")
    assert (files.kind, files.name) == ("hf", "folder")
    assert {path.name for path in files.path.iterdir()} == KEPT
    for name in KEPT:
        assert (files.path / name).read_bytes() == FOLDER[name]
    assert tmp_path in files.path.parents


def test_a_cached_model_needs_no_network(site: Site, resolve: Any) -> None:
    first = resolve("hf:org/folder")
    site.log.clear()
    assert resolve("hf:org/folder") == first
    assert resolve("hf:org/folder", offline=True) == first
    assert site.log == []


@pytest.mark.parametrize("by_variable", [False, True])
def test_offline_downloads_nothing(
    by_variable: bool, site: Site, resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_variable:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="offline mode"):
        resolve("hf:org/folder", offline=not by_variable)
    assert site.log == []


def test_an_incomplete_folder_is_completed(site: Site, resolve: Any) -> None:
    folder = resolve("hf:org/folder").path
    blob = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    blob.unlink()
    with pytest.raises(ModelError, match="offline mode"):
        resolve("hf:org/folder", offline=True)
    assert (resolve("hf:org/folder").path / "model.safetensors").read_bytes() == FOLDER[
        "model.safetensors"
    ]


def test_a_broken_connection_is_continued(
    site: Site, resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    site.break_after, site.breaks_left = 400_000, 1
    files = resolve("hf:org/folder")
    assert (files.path / "model.safetensors").read_bytes() == FOLDER["model.safetensors"]
    asked = [r for method, path, r in site.log if method == "GET" and "safetensors" in path]
    assert asked == [None, "bytes=400000-"]


def test_a_wrong_checksum_is_not_kept(site: Site, resolve: Any) -> None:
    site.wrong_checksums = True
    with pytest.raises(ModelError, match=r"checksum of .* is wrong"):
        resolve("hf:org/one")
    with pytest.raises(ModelError, match="offline mode"):
        resolve("hf:org/one", offline=True)
    site.wrong_checksums = False
    assert resolve("hf:org/one").path.read_bytes() == b"GGUF1"


def test_one_gguf_file(site: Site, resolve: Any) -> None:
    files = resolve("hf:org/one")
    assert (files.kind, files.name) == ("gguf", "b")
    assert files.path.read_bytes() == b"GGUF1"
    assert resolve("hf:org/one", offline=True) == files


def test_several_gguf_files_must_be_named(site: Site, resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"a-Q4_0\.gguf, a-Q8_0\.gguf"):
        resolve("hf:org/ggufs")
    files = resolve("hf:org/ggufs:a-Q8_0.gguf")
    assert files.path.read_bytes() == b"GGUF8"
    assert files.name == "a-Q8_0"
    with pytest.raises(ModelError, match=r"no file 'c\.gguf'; it has a-Q4_0\.gguf"):
        resolve("hf:org/ggufs:c.gguf")
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        resolve("hf:org/ggufs:config.json")


def test_pickles_only(site: Site, resolve: Any) -> None:
    with pytest.raises(ModelError, match="pickles are never loaded"):
        resolve("hf:org/pickles")


def test_a_repository_that_is_not_there(site: Site, resolve: Any) -> None:
    with pytest.raises(ModelError, match="hf:org/none does not exist, or is private") as caught:
        resolve("hf:org/none")
    assert "\n" not in str(caught.value)


def test_a_file_that_vanished(site: Site, resolve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed(dict[str, bytes]):
        """Lists a file that cannot be had."""

        def get(self, key: str, default: Any = None) -> Any:
            return None if key == "b.gguf" else super().get(key, default)

        def __contains__(self, key: object) -> bool:
            return False

    site.repos["org/one"] = Listed({"b.gguf": b"x"})
    with pytest.raises(ModelError, match="hf:org/one"):
        resolve("hf:org/one")


def test_no_hub_at_all(resolve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Site()) as stopped:
        monkeypatch.setenv("HF_ENDPOINT", stopped.url)
    with pytest.raises(ModelError, match="hf:org/folder cannot be downloaded") as caught:
        resolve("hf:org/folder")
    assert "\n" not in str(caught.value)


# ---- aliases


def test_an_alias_of_the_hub(site: Site, resolve: Any, tmp_path: Path) -> None:
    source = ALIASES["gpt2"].source
    assert isinstance(source, HubRepo)
    site.repos[source.repo] = dict(FOLDER)
    listed = hub.list_models(ModelSettings(cache_dir=str(tmp_path / "cache")))
    assert all(model.path is None and model.size is None for model in listed)
    files = resolve("gpt2")
    assert files.name == "gpt2"
    listed = hub.list_models(ModelSettings(cache_dir=str(tmp_path / "cache")))
    assert [model.name for model in listed] == list(ALIASES)
    (cached,) = [model for model in listed if model.path is not None]
    assert (cached.name, cached.path) == ("gpt2", files.path)
    assert cached.size == sum(len(FOLDER[name]) for name in KEPT)


def test_finding_a_model_and_its_config_needs_no_torch() -> None:
    modules = "import sys, pellucid.load.hub, pellucid.load.model_config"
    late = ("torch", "transformers", "huggingface_hub", "gguf", "safetensors", "rich")
    code = f"{modules}; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
