"""LoRA adapters that clients load into a running server, from one folder of its disk alone."""

from __future__ import annotations

from pathlib import Path

from pellucid.errors import BadRequest, ConfigError, ModelError, ModelNotFound, ModelUnavailable
from pellucid.server.models.hosted import ModelStatus
from pellucid.server.models.registry import Models

MAX_NAME_CHARS = 256


class NotAllowed(BadRequest):
    """The server was not told to let clients change its adapters."""

    status = 403


async def load_adapter(models: Models, name: str, path: str) -> ModelStatus:
    """Load an adapter for the first model, and serve it as `name`.

    Raises:
        NotAllowed: without --allow-lora-updates.
        BadRequest: the name is taken, or there is no adapter at `path` that this model can use.
        ModelUnavailable, RequestTimeout: the model itself cannot be loaded now.
    """
    folder = _folder(models)
    if not name or len(name) > MAX_NAME_CHARS or "=" in name:
        raise _wrong("lora_name", f"must have 1 to {MAX_NAME_CHARS} characters and no '='")
    if name in models.names_and_adapters:
        raise _wrong("lora_name", f"{name!r} is served already")
    found = _inside(folder, path)
    hosted = models.default
    hosted.lease()  # or it might be unloaded meanwhile
    try:
        service = await models.ready(hosted)
        await service.llm.adapters.load(name, str(found))
        hosted.set_adapters({**hosted.adapters, name: str(found)})
    except ModelUnavailable:
        raise
    except ModelError as error:
        shown = error.message.replace(str(found), path)  # clients know no other path
        raise _wrong("lora_path", f"cannot be used: {shown}") from None
    finally:
        hosted.release()
    return models.status(name)


def unload_adapter(models: Models, name: str) -> None:
    """Serve an adapter no more; requests that have it already get their answers.

    Raises NotAllowed, or ModelNotFound.
    """
    _folder(models)
    hosted = models.base_of(name)
    if hosted is None:
        raise ModelNotFound(
            f"There is no LoRA adapter {name!r}.", param="lora_name", code="model_not_found"
        )
    hosted.set_adapters({n: p for n, p in hosted.adapters.items() if n != name})
    if hosted.service is not None:
        hosted.service.llm.adapters.unload(name)


def check_folder(folder: str | None) -> None:
    """Raises ConfigError if there is no such folder."""
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise ConfigError(
            f"allow_lora_updates: {folder} is not a folder", param="allow_lora_updates"
        )


def _folder(models: Models) -> Path:
    folder = models.config.hosting.allow_lora_updates
    if folder is None:
        raise NotAllowed(
            "Adapters cannot be changed: the server was started without --allow-lora-updates.",
            code="not_allowed",
        )
    return Path(folder).expanduser().resolve()


def _inside(folder: Path, path: str) -> Path:
    """Where `path` leads, which is inside of `folder`, links included. Raises BadRequest."""
    try:
        found = (folder / path).resolve()
        files = [found, *(found.iterdir() if found.is_dir() else ())]
        is_inside = all(file.resolve().is_relative_to(folder) for file in files)
        exists = found.exists() and found != folder
    except (OSError, ValueError, RuntimeError):  # a null byte, too long a name, a loop of links
        is_inside = exists = False
    if not (is_inside and exists):
        raise _wrong("lora_path", f"{path!r:.200} is no adapter in the folder for adapters")
    return found


def _wrong(field: str, problem: str) -> BadRequest:
    return BadRequest(f"{field} {problem}", param=field, code="invalid_value")
