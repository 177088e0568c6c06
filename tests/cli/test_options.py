"""Flags, variables and file keys against the structs that they derive from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pellucid.cli.options import configured
from pellucid.cli.settings import Setting, settings_of
from pellucid.config import EngineConfig, GatewayConfig, ModelSettings, ServerConfig
from pellucid.errors import ConfigError

CONFIGS = (EngineConfig, ServerConfig, GatewayConfig)
ALL = [setting for config in CONFIGS for setting in settings_of(config)]

# A valid value other than the default, as text, and as its field's type.
VALUES: dict[str, tuple[str, Any]] = {
    "model": ("other", "other"),
    "dtype": ("float32", "float32"),
    "memory_fraction": ("0.25", 0.25),
    "request_timeout": ("2.5", 2.5),
    "fake_step_ms": ("1.5", 1.5),
    "runner": ("fake", "fake"),
    "device": ("cuda:1", "cuda:1"),
    "quantization": ("int8", "int8"),
    "kv_cache_dtype": ("bfloat16", "bfloat16"),
    "kernels": ("reference", "reference"),
    "threads": ("3", 3),
    "tensor_parallel_size": ("2", 2),
    "pooling": ("mean", "mean"),
    "speculative": ("ngram", "ngram"),
    "num_speculative_tokens": ("3", 3),
    "prompt_lookup_min": ("3", 3),
    "prompt_lookup_max": ("3", 3),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "log_interval": ("2.5", 2.5),
    "cache": ("redis://host:1/0", "redis://host:1/0"),
    "rate_limit_storage": ("redis://host:1/0", "redis://host:1/0"),
    "tool_call_parser": ("mistral", "mistral"),
    "reasoning_parser": ("qwen3", "qwen3"),
}
BY_KIND: dict[str, tuple[str, Any]] = {
    "integer": ("4096", 4096),
    "number": ("7.5", 7.5),
    "text": ("some text", "some text"),
    "list": ("one", ["one"]),
}


def value_of(setting: Setting) -> tuple[str, Any]:
    if setting.kind == "switch":
        return str(not setting.default).lower(), not setting.default
    if setting.name in ("block_size", "max_logprobs", "max_n"):
        return "32", 32
    return VALUES.get(setting.name) or BY_KIND[setting.kind]


Configs = tuple[EngineConfig, ServerConfig, GatewayConfig]


def run(*arguments: str, **environment: str) -> Configs:
    """What a command with every setting receives. Raises what it raises."""
    received: list[Configs] = []
    app = typer.Typer()

    @app.command()
    @configured()
    def command(engine: EngineConfig, server: ServerConfig, gateway: GatewayConfig) -> None:
        received.append((engine, server, gateway))

    result = CliRunner().invoke(app, list(arguments), env=environment)
    if result.exception is not None:
        raise result.exception
    return received[0]


def field_of(configs: Configs, setting: Setting) -> Any:
    if setting.section == "server":
        return getattr(configs[1], setting.name)
    owner = next(config for config in configs if hasattr(config, setting.section))
    return getattr(getattr(owner, setting.section), setting.name)


def test_settings_cover_every_field() -> None:
    names = [setting.name for setting in ALL]
    server = ServerConfig()
    composed = (EngineConfig(), GatewayConfig())
    parts = [part for config in composed for part in msgspec.structs.asdict(config).values()]
    parts += [server.observe, server.hosting]
    fields = {name for part in parts for name in part.__struct_fields__}
    fields |= {*ServerConfig.__struct_fields__} - {"observe", "hosting"}
    assert sorted(names) == sorted(fields)
    assert len(set(names)) == len(names)  # flat names are unambiguous


@pytest.mark.parametrize("setting", ALL, ids=lambda s: s.name)
def test_is_described(setting: Setting) -> None:
    assert setting.description.endswith(".")


@pytest.mark.parametrize("setting", ALL, ids=lambda s: s.name)
class TestEverySetting:
    def test_by_flag(self, setting: Setting) -> None:
        text, value = value_of(setting)
        if setting.kind == "switch":
            flag = setting.flag if value else "--no-" + setting.flag[2:]
            arguments = [flag]
        else:
            arguments = [setting.flag, text]
        assert field_of(run(*arguments), setting) == value

    def test_by_environment(self, setting: Setting) -> None:
        text, value = value_of(setting)
        variable = "PELLUCID_" + setting.name.upper()
        assert field_of(run(**{variable: text}), setting) == value

    def test_by_flat_file_key(self, setting: Setting, tmp_path: Path) -> None:
        _, value = value_of(setting)
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump({setting.name: value}))
        assert field_of(run("--config", str(file)), setting) == value

    def test_by_nested_file_key(self, setting: Setting, tmp_path: Path) -> None:
        _, value = value_of(setting)
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump({setting.section: {setting.name: value}}))
        assert field_of(run("--config", str(file)), setting) == value


def test_nothing_given_is_the_defaults() -> None:
    assert run() == (EngineConfig(), ServerConfig(), GatewayConfig())


def test_tensor_parallel_size_has_the_short_flag_of_vllm() -> None:
    engine, _, _ = run("-tp", "2")
    assert engine.runner.tensor_parallel_size == 2


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("max_num_seqs: 1\nport: 1\nhost: file\n")
    engine, server, _ = run(
        *("--config", str(file), "--max-num-seqs", "3"),
        PELLUCID_MAX_NUM_SEQS="2",
        PELLUCID_PORT="2",
    )
    assert (engine.scheduler.max_num_seqs, server.port, server.host) == (3, 2, "file")


def test_switch_off_beats_environment_on() -> None:
    engine, *_ = run("--no-prefix-caching", PELLUCID_PREFIX_CACHING="true")
    assert engine.cache.prefix_caching is False


def test_empty_variable_counts_as_not_given() -> None:
    assert run(PELLUCID_PORT="")[1].port == ServerConfig().port


def test_model_by_position_and_by_flag() -> None:
    assert run("here.gguf")[0].model.model == "here.gguf"
    assert run("same", "--model", "same")[0].model.model == "same"
    assert run("here.gguf", PELLUCID_MODEL="there")[0].model.model == "here.gguf"
    with pytest.raises(ConfigError, match="'a' and --model 'b' differ"):
        run("a", "--model", "b")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--max-num-seqs", "0"], {}, "--max-num-seqs: Expected int >= 1, got '0'"),
        (["--port", "x"], {}, "--port: Expected int, got 'x'"),
        (
            ["--dtype", "int3"],
            {},
            "--dtype: must be one of auto, float32, bfloat16, float16, got 'int3'",
        ),
        ([], {"PELLUCID_PORT": "70000"}, "PELLUCID_PORT: Expected int <= 65535, got '70000'"),
        ([], {"PELLUCID_OFFLINE": "maybe"}, "PELLUCID_OFFLINE: Expected bool, got 'maybe'"),
        (["--memory-fraction", "nan"], {}, "--memory-fraction: Expected float > 0.0, got 'nan'"),
    ],
)
def test_bad_value_names_where_it_came_from(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*arguments, **environment)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_seqs: 3", "unknown setting 'max_seqs'"),
        ("scheduler: {max_seqs: 3}", "unknown setting 'scheduler.max_seqs'"),
        ("cache: {port: 3}", "unknown setting 'cache.port'"),
        ("port: 3\nserver: {port: 4}", "'port' is set twice"),
        ("- port", "must hold settings as `name: value` lines"),
        ("port: [", "is not YAML: line"),
        ("port: !!python/object/apply:os.system ['true']", "is not YAML: line 1"),
        ("1: 2", "unknown setting 1"),
        ("port: x", "port: Expected int, got 'x'"),
        ("policy:", "policy: Expected str, got None"),
    ],
)
def test_bad_file_is_told(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        run("--config", str(file))
    assert str(file) in caught.value.message
    assert message in caught.value.message


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        run("--config", str(tmp_path / "nowhere.yaml"))


def test_empty_file_sets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n")
    assert run("--config", str(file)) == (EngineConfig(), ServerConfig(), GatewayConfig())


def test_model_may_be_setting_or_section(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model: {model: a.gguf, dtype: float32}\nrunner: fake\n")
    engine, *_ = run("--config", str(file))
    assert engine.model == ModelSettings(model="a.gguf", dtype="float32")
    assert engine.runner.runner == "fake"


def test_one_file_serves_commands_that_need_less_of_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("cache_dir: /models\nport: 1\ntemperature: 0.5\n")
    received: list[ModelSettings] = []
    app = typer.Typer()

    @app.command()
    @configured(only=("model", "cache_dir"))
    def command(settings: ModelSettings) -> None:
        received.append(settings)

    result = CliRunner().invoke(app, ["--config", str(file)])
    assert result.exit_code == 0
    assert received == [ModelSettings(cache_dir="/models")]
    assert CliRunner().invoke(app, ["--dtype", "float32"]).exit_code == 2


# ---- several models


def models_of(*arguments: str, **environment: str) -> list[tuple[str, str | None]]:
    """The models that a command for several gets, and the names they are served under."""
    received: list[EngineConfig] = []
    app = typer.Typer()

    @app.command()
    @configured()
    def command(engines: list[EngineConfig]) -> None:
        received.extend(engines)

    result = CliRunner().invoke(app, list(arguments), env=environment)
    if result.exception is not None:
        raise result.exception
    return [(engine.model.model, engine.model.served_model_name) for engine in received]


def test_a_command_for_several_models_takes_the_flag_repeatedly(tmp_path: Path) -> None:
    assert models_of() == [(ModelSettings().model, None)]
    assert models_of("a") == models_of("--model", "a") == [("a", None)]
    both = [("a", None), ("dir/b.gguf", "fast")]
    assert models_of("--model", "a", "--model", "fast=dir/b.gguf") == both
    assert models_of(PELLUCID_MODEL="a, fast=dir/b.gguf") == both
    file = tmp_path / "settings.yaml"
    for content in ("model: [a, fast=dir/b.gguf]", "model: {model: [a, fast=dir/b.gguf]}"):
        file.write_text(content)
        assert models_of("--config", str(file)) == both
        (engine, *_) = run("--config", str(file))  # a command for one
        assert engine.model.model == "a"


def test_a_path_may_hold_what_separates_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a=b.gguf"
    assert models_of("--model", str(path))[0][1] == f"{tmp_path}/a"
    path.touch()
    assert models_of("--model", str(path)) == [(str(path), None)]
    assert models_of("--model", "hf:org/name:a=b.gguf") == [("hf:org/name:a=b.gguf", None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "--model", "a", "--model", "b"), "differ: give one of them"),
        (("--model", "=b"), "not of the form NAME=SOURCE"),
        (("--model", "a="), "not of the form NAME=SOURCE"),
        (("--model", "a=b", "--served-model-name", "c"), "--served-model-name"),
        (("--model", "a", "--model", "b", "--served-model-name", "c"), "--served-model-name"),
    ],
)
def test_models_that_contradict_each_other_are_told(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        models_of(*arguments)


@pytest.mark.parametrize("content", ["model: []", "model: [1]", "model: 3"])
def test_a_file_without_proper_models_is_told(content: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="model"):
        models_of("--config", str(file))
