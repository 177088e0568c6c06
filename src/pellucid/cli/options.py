"""Flags, environment variables and YAML keys, all derived from the structs of config/.

A command says what it needs by annotating parameters with config structs:

    @app.command()
    @configured()
    def doctor(engine: EngineConfig, server: ServerConfig) -> None: ...

and `configured` replaces each of them with one option per field. A setting is taken from the first
of: flag, environment variable (`PELLUCID_MAX_NUM_SEQS`), file of `--config`, default. Structs that
are not in `settings.SHARED`, those of a benchmark, have flags only.

A command for several models says `list[EngineConfig]`: --model may be repeated, and there is one
struct for each, equal in all else. Other commands take the first where a file names several.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import typer
from rich.markup import escape

from pellucid.cli.config_file import read_config_file
from pellucid.cli.model_names import chosen_models, model_fields
from pellucid.cli.settings import Setting, settings_of, shared_settings
from pellucid.config import compose
from pellucid.errors import ConfigError

Command = Callable[..., None]


def configured(only: Collection[str] | None = None) -> Callable[[Command], Command]:
    """Decorate a typer command whose parameters include config structs (see the module).

    Args:
        only: names of the settings that get a flag; all by default.

    A command with ModelSettings also takes the model as the positional argument MODEL. The command
    raises ConfigError, naming the flag, variable or file that a wrong value came from.
    """

    def decorate(command: Command) -> Command:
        own, structs, many = _split_parameters(command)
        offered = {
            setting.name: setting
            for struct in structs.values()
            for setting in settings_of(struct)
            if only is None or setting.name in only
        }

        @functools.wraps(command)
        def run(**given: Any) -> None:
            file = given.pop("config", None)
            flags = {name: given.pop(name) for name in offered}
            if _takes_model(offered):
                flags["model"] = chosen_models(given.pop("model_argument"), flags["model"])
            values = _collect(offered, flags, file)
            configs: dict[str, Any] = {}
            for name, struct in structs.items():
                built = _build(struct, values, several=name in many)
                configs[name] = built if name in many else built[0]
            command(**given, **configs)

        parameters = [*own, *_option_parameters(offered, several_models=bool(many))]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


# ---- from settings to options


def _split_parameters(
    command: Command,
) -> tuple[list[inspect.Parameter], dict[str, type[msgspec.Struct]], set[str]]:
    """The command's own parameters (made keyword-only), and those that are config structs.

    The set has the names of those that are lists of structs.
    """
    own: list[inspect.Parameter] = []
    structs: dict[str, type[msgspec.Struct]] = {}
    many: set[str] = set()
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        annotation = parameter.annotation
        if get_origin(annotation) is list:
            (annotation,) = get_args(annotation)
            many.add(name)
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            structs[name] = annotation
        else:
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return own, structs, many


def _option_parameters(
    offered: Mapping[str, Setting], *, several_models: bool
) -> list[inspect.Parameter]:
    file = typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with settings; flags and PELLUCID_* variables override it.",
    )
    options = [
        _parameter(s.name, _option_type(s, several_models), _option(s, several_models))
        for s in offered.values()
    ]
    shared = any(setting.section in shared_settings() for setting in offered.values())
    if _takes_model(offered):
        about = escape(offered["model"].description)
        argument = typer.Argument(
            metavar="MODEL",
            help=about + _default_note(offered["model"]),
            autocompletion=_complete_model,
            show_default=False,
        )
        options.insert(0, _parameter("model_argument", str | None, argument))
    return [*options, _parameter("config", Path | None, file)] if shared else options


def _takes_model(offered: Mapping[str, Setting]) -> bool:
    return any(setting.is_model for setting in offered.values())


def _parameter(name: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,  # so that what was not given can be told from what was
        annotation=Annotated[annotation, option],
    )


def _option_type(setting: Setting, several_models: bool) -> Any:
    """Text for anything but switches: values are checked by config.compose, in one place."""
    if setting.kind == "switch":
        return bool | None
    is_list = setting.kind == "list" or (setting.is_model and several_models)
    return list[str] | None if is_list else str | None


def _option(setting: Setting, several_models: bool) -> Any:
    switch = setting.kind == "switch"
    about = escape(setting.description) + _default_note(setting)
    flag = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}" if switch else setting.flag
    return typer.Option(
        flag,
        *([setting.short] if setting.short else []),
        help=_about_model(several_models) if setting.is_model else about,
        metavar=None if switch else _metavar(setting),
        rich_help_panel=setting.panel,
        autocompletion=_completion(setting),
        show_default=False,
    )


def _about_model(several: bool) -> str:
    if not several:
        return "The same as MODEL."
    return (
        "The same as MODEL, or NAME=MODEL; repeat it for several. The first is loaded at once, "
        "others when they are asked for."
    )


def _metavar(setting: Setting) -> str:
    if setting.choices:
        return "|".join(setting.choices)
    return {"integer": "INT", "number": "NUMBER"}.get(setting.kind, "TEXT")


def _default_note(setting: Setting) -> str:
    if setting.default is None:
        return ""
    if setting.kind == "switch":
        return f" (default: {'on' if setting.default else 'off'})"
    return f" (default: {setting.default})"


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    if setting.is_model:
        return _complete_model
    if setting.choices:
        return lambda incomplete: [c for c in setting.choices if c.startswith(incomplete)]
    return None


def _complete_model(incomplete: str) -> list[str]:
    from pellucid.load.aliases import ALIASES

    return [name for name in ALIASES if name.startswith(incomplete)]


# ---- from what was given to configs


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    setting: Setting
    origin: str  # what the user wrote it as


def _collect(
    offered: Mapping[str, Setting], flags: Mapping[str, Any], file: Path | None
) -> dict[str, _Given]:
    """The value of each setting that was given at all, from where it counts most."""
    shared = shared_settings()
    in_file = read_config_file(file, shared) if file else {}
    values: dict[str, _Given] = {}
    for name, setting in offered.items():
        if flags[name] is not None:
            values[name] = _Given(flags[name], setting, setting.flag)
        elif setting.section not in shared:
            continue
        elif text := os.environ.get(setting.variable):
            value: Any = [text] if setting.kind == "list" else text
            if setting.is_model:
                value = [model.strip() for model in text.split(",")]
            values[name] = _Given(value, setting, setting.variable)
        elif name in in_file:
            values[name] = _Given(in_file[name], setting, f"{file}: {name}")
    return values


def _build(
    config_type: type[msgspec.Struct], values: Mapping[str, _Given], *, several: bool
) -> list[msgspec.Struct]:
    """One struct for each model that the values name, if `several` are wanted; otherwise one."""
    names = {setting.name for setting in settings_of(config_type)}
    flat = {name: given.value for name, given in values.items() if name in names}
    try:
        if "model" not in flat:
            return [compose(config_type, flat)]
        models = flat["model"] if isinstance(flat["model"], list) else [flat["model"]]
        if not models:
            raise ConfigError("model: must name at least one", param="model")
        if not several:
            models = models[:1]
        served_name = flat.get("served_model_name")
        return [
            compose(
                config_type,
                flat | model_fields(model, served_name, several=len(models) > 1),
            )
            for model in models
        ]
    except ConfigError as error:
        given = values.get(error.param or "")
        if given is None:
            raise
        raise ConfigError(_blame(given, error), param=error.param) from None


def _blame(given: _Given, error: ConfigError) -> str:
    reason = error.message.removeprefix(f"{error.param}: ").partition(", got ")[0]
    if given.setting.choices:
        reason = "must be one of " + ", ".join(given.setting.choices)
    shown = "" if given.setting.secret else f", got {given.value!r}"
    return f"{given.origin}: {reason.replace('`', '')}{shown}"
