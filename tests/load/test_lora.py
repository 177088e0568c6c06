"""Adapters as files: what is read, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pellucid.errors import ModelError
from pellucid.load.files import ModelFiles
from pellucid.load.lora import LoraAdapter, read_adapter
from pellucid.load.model_config import load_config
from pellucid.models.config import ModelConfig
from tests.tiny_adapters import adapter_to_gguf, make_peft
from tests.tiny_models import make_hf

TENSORS = "adapter_model.safetensors"
A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_hf("llama", folder / "base")
    make_peft(folder / "base", folder / "adapter")
    adapter_to_gguf(folder / "base", folder / "adapter", folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> ModelConfig:
    return load_config(ModelFiles("hf", home / "base", "base"))


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "adapter", tmp_path / "copy")
    return tmp_path / "copy"


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: t.clone() for name, t in load_file(folder / TENSORS).items()}
    edit(tensors)
    save_file(tensors, folder / TENSORS)


def test_both_formats_say_the_same(home: Path, model: ModelConfig) -> None:
    first = read_adapter(home / "adapter", model, 8)
    second = read_adapter(home / "adapter.gguf", model, 8)
    assert first.digest() == second.digest()
    assert (first.rank, len(first.updates)) == (4, 7 * 3)
    assert first.num_parameters == sum(
        tensor.numel() for tensor in load_file(home / "adapter" / TENSORS).values()
    )


def test_the_digest_covers_every_number(copy: Path, model: ModelConfig) -> None:
    digests = {read_adapter(copy, model, 8).digest()}
    configure(copy, lora_alpha=7)
    digests.add(read_adapter(copy, model, 8).digest())
    change(copy, lambda tensors: tensors[B][3].add_(0.5))
    digests.add(read_adapter(copy, model, 8).digest())
    change(copy, lambda tensors: (tensors.pop(A), tensors.pop(B)))
    digests.add(read_adapter(copy, model, 8).digest())
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"use_dora": True}, "'use_dora' is not supported"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is not supported"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices' is not supported"),
        ({"lora_bias": True}, "'lora_bias' is not supported"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication' is not supported"),
        ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens' is not supported"),
        ({"of_tomorrow": {"x": 1}}, "'of_tomorrow' is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"r": 0}, "r must be an integer from 1"),
        ({"r": "4"}, "r must be an integer"),
        ({"r": 5}, "has rank 4; adapter_config.json says r = 5"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"lora_alpha": 1e300}, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "only names of modules"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern must be numbers"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"use_rslora": 1}, "use_rslora must be true or false"),
    ],
)
def test_settings_that_cannot_be_honoured(
    changes: dict[str, Any], named: str, copy: Path, model: ModelConfig
) -> None:
    configure(copy, **changes)
    with pytest.raises(ModelError, match="copy") as error:
        read_adapter(copy, model, 8)
    assert named in error.value.message


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop(B), f"tensor {B} is missing"),
        (lambda t: t.pop(A), f"tensor {A} is missing"),
        (lambda t: t.update({A: torch.zeros(4, 65)}), f"tensor {A} has shape [4, 65]"),
        (lambda t: t.update({B: torch.zeros(65, 4)}), f"tensor {B} has shape [65, 4]"),
        (lambda t: t.update({B: torch.zeros(64, 5)}), f"tensor {B} has shape [64, 5]"),
        (lambda t: t.update({A: torch.zeros(64)}), f"tensor {A} has shape [64]"),
        (
            lambda t: t.update({A: torch.zeros(0, 64), B: torch.zeros(64, 0)}),
            f"tensor {A} has rank 0; allowed are 1 to 8",
        ),
        (
            lambda t: t.update({A: torch.zeros(9, 64), B: torch.zeros(64, 9)}),
            f"tensor {A} has rank 9; allowed are 1 to 8 (--max-lora-rank)",
        ),
        (lambda t: t[A].fill_(torch.nan), "layers.1.self_attn.q_proj is not finite"),
        (lambda t: t.update(x=torch.zeros(1)), "tensor 'x' (1 in all) belongs to no projection"),
        (
            lambda t: t.update({A.replace("layers.1", "layers.9"): torch.zeros(4, 64)}),
            "layers.9.self_attn.q_proj.lora_A.weight' (1 in all) belongs to no projection",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}),
            "lm_head.lora_A.weight' (1 in all) belongs to no projection",
        ),
        (lambda t: t.update({A: torch.zeros(4, 64, dtype=torch.int8)}), "has type I8"),
        (lambda t: t.clear(), "changes nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    edit: Callable[[dict[str, torch.Tensor]], object], named: str, copy: Path, model: ModelConfig
) -> None:
    change(copy, edit)
    with pytest.raises(ModelError) as error:
        read_adapter(copy, model, 8)
    assert named in error.value.message


def test_pickles_and_other_things_are_no_adapters(
    copy: Path, model: ModelConfig, tmp_path: Path
) -> None:
    (copy / TENSORS).rename(copy / "adapter_model.bin")
    with pytest.raises(ModelError, match="as a pickle"):
        read_adapter(copy, model, 8)
    (copy / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=f"does not hold {TENSORS}"):
        read_adapter(copy, model, 8)
    (copy / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="cannot read"):
        read_adapter(copy, model, 8)
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.gguf"):
        with pytest.raises(ModelError, match="nowhere"):
            read_adapter(path, model, 8)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general__type": "model"}, "general.type must be 'adapter'"),
        ({"adapter__type": "control_vector"}, "adapter.type must be 'lora'"),
        ({"general__architecture": "qwen2"}, "general.architecture must be 'llama'"),
        ({"adapter__alora__invocation_tokens": [1, 2]}, "adapter.alora.invocation_tokens"),
        ({"adapter__lora__alpha": float("nan")}, "adapter.lora.alpha must be a number"),
    ],
)
def test_gguf_files_of_another_kind(
    metadata: dict[str, Any], named: str, home: Path, model: ModelConfig, tmp_path: Path
) -> None:
    adapter_to_gguf(home / "base", home / "adapter", tmp_path / "x.gguf", **metadata)
    with pytest.raises(ModelError) as error:
        read_adapter(tmp_path / "x.gguf", model, 8)
    assert named in error.value.message


def test_a_gguf_adapter_of_another_model_is_named(home: Path, tmp_path: Path) -> None:
    make_hf("llama", tmp_path / "wide", hidden_size=128)
    wide = load_config(ModelFiles("hf", tmp_path / "wide", "wide"))
    with pytest.raises(ModelError, match=r"tensor blk.0.attn_q.weight.lora_a has shape \[4, 64\]"):
        read_adapter(home / "adapter.gguf", wide, 8)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_an_error_or_does_no_harm(
    data: st.DataObject, home: Path, model: ModelConfig, tmp_path: Path
) -> None:
    """Whatever is written over a file's bytes, the reader raises ModelError or reads an adapter."""
    is_gguf = data.draw(st.booleans())
    raw = bytearray((home / ("adapter.gguf" if is_gguf else f"adapter/{TENSORS}")).read_bytes())
    header = 4000 if is_gguf else 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(header, len(raw)) - 1))
        raw[place : place + 1] = data.draw(st.binary(max_size=9))
    folder = tmp_path / "damaged"
    shutil.copytree(home / "adapter", folder, dirs_exist_ok=True)
    path = tmp_path / "damaged.gguf" if is_gguf else folder
    (path if is_gguf else folder / TENSORS).write_bytes(raw)
    with suppress(ModelError):
        assert isinstance(read_adapter(path, model, 8), LoraAdapter)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(
        st.sampled_from(
            (
                *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
                *("peft_type", "init_lora_weights", "modules_to_save", "target_modules", "new"),
            )
        ),
        JSON,
    )
)
def test_any_settings_are_an_error_or_read(
    home: Path, model: ModelConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "settings"
    shutil.copytree(home / "adapter", folder, dirs_exist_ok=True)
    configure(folder, **changes)
    with suppress(ModelError):
        assert isinstance(read_adapter(folder, model, 8), LoraAdapter)
