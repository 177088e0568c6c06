"""The arrows of docs/architecture.md: who may import whom, read from the source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pellucid

ROOT = Path(pellucid.__file__).parent
OURS = "pellucid"
LEAVES = {"config", "errors", "messages", "sampling_params", "structured_outputs"}

# What each part may import of pellucid, at module level or inside a function; itself always.
# "engine.client" and the like name one module of a part.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "sampling_params": {"errors", "structured_outputs"},
    "structured_outputs": {"errors"},
    "config": {"errors"},
    "messages": {"sampling_params"},
    "kernels": {"_native"},
    "sample": {"_native"},
    "grammar": set(),
    "spec": {"sampling_params"},
    "quant": {"kernels.interface"},
    "models": {"errors", "kernels", "layers"},
    "layers": {"errors", "kernels", "models.config"},
    "load": {
        "config",
        "errors",
        "kernels.interface",
        "kernels.ranks",
        "models.config",
        "models.shapes",
        "quant",
    },
    "runner": LEAVES | {"grammar", "kernels", "load", "models", "sample", "spec"},
    "engine": LEAVES | {"grammar", "runner.base", "runner.factory", "spec"},
    "frontend": LEAVES | {"__version__", "engine.client", "grammar", "load.files", "load.hub"},
    "observe": LEAVES | {"__version__", "engine.events", "frontend"},
    "server": LEAVES | {"__version__", "frontend", "grammar.errors", "observe"},
    "bench": LEAVES | {"__version__"},
    # Measures every part of the engine, so it may look into all of them; nobody looks into it.
    "lab": LEAVES
    | {"bench", "engine", "frontend.tokenizer", "kernels", "layers", "load", "models"}
    | {"quant", "runner"},
}
TOP = {"cli", "__init__", "__main__"}  # may import anything
TORCH_PARTS = {"kernels", "layers", "models", "load", "quant", "sample", "runner", "lab"}


def part_of(module: str) -> str:
    """`pellucid.engine.core` -> `engine`."""
    return module.split(".")[1] if "." in module else "__init__"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT).with_suffix("")
        name = ".".join((OURS, *relative.parts)).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute import in `tree`, `from a import b` as `a.b`; not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def is_allowed(imported: str, allowed: set[str]) -> bool:
    path = imported.split(".", 1)[1]  # without "pellucid."
    return any(path == target or path.startswith(target + ".") for target in allowed)


def test_every_part_has_its_arrows() -> None:
    assert {part_of(name) for name, _ in modules()} <= MAY_IMPORT.keys() | TOP


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_arrows_point_downwards(part: str) -> None:
    allowed = MAY_IMPORT[part] | {part}
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules()
        if part_of(name) == part
        for imported in imports(tree)
        if imported.split(".")[0] == OURS and not is_allowed(imported, allowed)
    ]
    assert wrong == []


def test_torch_is_imported_only_where_tensors_are() -> None:
    wrong = [
        name
        for name, tree in modules()
        if part_of(name) not in TORCH_PARTS
        for imported in imports(tree)
        if imported.split(".")[0] == "torch" and name != "pellucid.bench.machine"  # asks, lazily
    ]
    assert wrong == []


def test_pickle_and_eval_are_nowhere() -> None:
    banned = {"pickle", "shelve", "marshal", "dill", "cloudpickle"}
    wrong = []
    for name, tree in modules():
        wrong += [name for imported in imports(tree) if imported.split(".")[0] in banned]
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        names = {call.id for call in calls if isinstance(call, ast.Name)}
        wrong += [name for call in ("eval", "exec") if call in names]
    assert wrong == []


def loaded_by(statement: str, candidates: set[str]) -> set[str]:
    """Which of the packages a fresh interpreter has loaded after `statement`."""
    check = f"{statement}\nimport sys\nprint(*({candidates!r} & sys.modules.keys()))"
    answer = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


FRONT_END = (
    "import pellucid",
    "import pellucid.engine.client, pellucid.engine.core, pellucid.engine.process",
    "from pellucid import AsyncLLM, LLM, SamplingParams, EngineConfig",
    "import pellucid.server.app, pellucid.server.run",
    "import pellucid.cli.app, pellucid.cli.local, pellucid.cli.remote, pellucid.cli.diagnosis",
    "import pellucid.bench.serving, pellucid.bench.throughput, pellucid.bench.machine",
    "import pellucid.runner.factory, pellucid.runner.fake",
    "from pellucid.lab.experiment import find_experiments; find_experiments()",
    "import pellucid.lab.report, pellucid.cli.lab",
)


@pytest.mark.parametrize("statement", FRONT_END)
def test_front_end_never_loads_torch(statement: str) -> None:
    assert loaded_by(statement, {"torch", "transformers"}) == set()


def test_extras_are_loaded_only_when_a_setting_asks_for_them() -> None:
    statement = "import pellucid.server.run; from pellucid.config import GatewayConfig\n"
    statement += "pellucid.server.run.Gateway(GatewayConfig())"
    assert loaded_by(statement, {"anthropic", "limits", "redis", "httpx", "openai"}) == set()


def test_tensor_side_needs_no_front_end_packages() -> None:
    statement = "import pellucid.models.registry, pellucid.load.weights, pellucid.load.model_config"
    front = {"fastapi", "typer", "rich", "uvicorn", "jinja2", "huggingface_hub", "gguf"}
    assert loaded_by(statement, front | {"transformers"}) == set()


def test_triton_is_loaded_by_its_own_kernels_only() -> None:
    statement = "import pellucid.kernels.dispatch, pellucid.runner.torch_runner\n"
    statement += "import pellucid.kernels.triton, pellucid.sample.triton, pellucid.engine.process"
    assert loaded_by(statement, {"triton"}) == set()


def test_the_engine_needs_torch_and_four_small_packages_only() -> None:
    """So that it runs from source on a bare PyTorch machine: no extension, no server's packages."""
    absent = {"fastapi", "gguf", "huggingface_hub", "jinja2", "llguidance", "prometheus_client"}
    absent |= {"psutil", "yaml", "rich", "typer", "uvicorn", "transformers", "triton"}
    absent |= {"pellucid._native"}
    statement = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    statement += "import pellucid.runner.torch_runner, pellucid.engine.core, pellucid.load.weights"
    loaded_by(statement, set())


# A bare PyTorch machine: what is there beside the standard library, and what torch itself brings.
BARE = {"pellucid", "benchmarks", "torch", "numpy", "safetensors", "tokenizers", "msgspec"}
BARE |= {"filelock", "fsspec", "functorch", "mpmath", "networkx", "sympy", "torchgen"}
BARE |= {"typing_extensions"}
ON_A_BARE_MACHINE = f"""
import runpy, sys
PRESENT = {sorted(BARE)} + list(sys.stdlib_module_names)
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name == "pellucid._native" or name.partition(".")[0] not in PRESENT:
            raise ModuleNotFoundError("there is no " + name + " here", name=name)
sys.meta_path.insert(0, Nothing())
runpy.run_module("benchmarks.offline", run_name="__main__")
"""


@pytest.mark.parametrize("ahead", ["true", "false"])
def test_the_engine_generates_from_source_on_a_bare_machine(ahead: str) -> None:
    arguments = ["--shape", "tiny", "device=cpu", "max_model_len=128", "num_prompts=2"]
    arguments += ["input_len=20", "output_len=4", f"async_scheduling={ahead}"]
    found = subprocess.run(
        [sys.executable, "-c", ON_A_BARE_MACHINE, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT.parents[1],
        env={"PATH": "/usr/bin", "PYTHONPATH": str(ROOT.parent)},
    )
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["output_tokens"] == 2 * 4
    assert report["engine"]["kernels"] == "reference"


def test_only_three_modules_know_cuda() -> None:
    knows = {"pellucid.runner.device"}  # for the engine
    knows |= {"pellucid.kernels.gpu", "pellucid.bench.machine"}  # measure, know nothing of runners
    wrong = [
        name
        for name, tree in modules()
        if name not in knows
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda")
    ]
    assert wrong == []
