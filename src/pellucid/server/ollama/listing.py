"""What is served, in the words of Ollama's listings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pellucid.server.models import Models, ModelStatus
from pellucid.server.ollama.protocol import (
    OllamaDetails,
    OllamaModel,
    OllamaProcesses,
    OllamaRunning,
    OllamaShown,
    OllamaTags,
)
from pellucid.server.ollama.translate import DEFAULTS, tells_thoughts
from pellucid.server.service import Service

FOR_EVER = datetime(9999, 12, 31, tzinfo=UTC)  # far enough for clients to say so
_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_SIZES = {"B": (1e9, 1), "M": (1e6, 2), "K": (1e3, 2)}  # by letter: unit, decimals


def tags(models: Models) -> OllamaTags:
    """Every model; family and size of one that is not loaded are not known."""
    loaded = _loaded(models)
    return OllamaTags(
        [
            OllamaModel(
                name=_tagged(status.name),
                model=_tagged(status.name),
                modified_at=_time(models.created),
                size=status.size,
                digest=_digest(status),
                details=_details(status, loaded.get(status.name)),
            )
            for status in models.listing()
        ]
    )


def processes(models: Models) -> OllamaProcesses:
    """The models in memory."""
    loaded = _loaded(models)
    return OllamaProcesses(
        [
            OllamaRunning(
                name=_tagged(status.name),
                model=_tagged(status.name),
                size=status.held,
                size_vram=status.held if service.llm.info.device.startswith("cuda") else 0,
                digest=_digest(status),
                details=_details(status, service),
                expires_at=_time(status.expires_at) if status.expires_at else FOR_EVER,
                context_length=service.max_model_len,
            )
            for status in models.listing()
            if (service := loaded.get(status.name))
        ]
    )


def shown(models: Models, service: Service) -> OllamaShown:
    """A loaded model in detail. Templates are Jinja's, not Go's."""
    name, info, text = service.model_name, service.llm.info, service.llm.text
    status = models.status(name)
    template = text.chat_template.sources.get("default", "")
    parameters = {**DEFAULTS, "num_ctx": service.max_model_len}
    model_info: dict[str, Any] = {
        "general.architecture": info.architecture,
        "general.name": name,
        "general.parameter_count": info.num_parameters,
        f"{info.architecture}.context_length": service.max_model_len,
        f"{info.architecture}.vocab_size": info.vocab_size,
    }
    return OllamaShown(
        modelfile=_modelfile(status.source, template, parameters),
        parameters="\n".join(f"{key:<30} {value}" for key, value in parameters.items()),
        template=template,
        details=_details(status, service),
        model_info=model_info,
        capabilities=_capabilities(service, template),
        modified_at=_time(models.created),
    )


def _capabilities(service: Service, template: str) -> list[str]:
    able = {"completion": True, "tools": bool(template), "thinking": tells_thoughts(service)}
    return [name for name, is_able in able.items() if is_able]


def _details(status: ModelStatus, service: Service | None) -> OllamaDetails:
    family = size = weights = ""
    if service is not None:
        info, rounded = service.llm.info, service.engine.model.quantization
        family, size = info.architecture, _rounded(info.num_parameters)
        weights = rounded.upper() if rounded != "none" else _TYPES.get(info.dtype, "")
    return OllamaDetails(
        format=status.format,
        family=family,
        families=[family] if family else [],
        parameter_size=size,
        quantization_level=status.weights or weights,
    )


def _modelfile(source: str, template: str, parameters: Mapping[str, object]) -> str:
    lines = ["# What is served, as a Modelfile would say it. The template is Jinja's."]
    lines += [f"FROM {source}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _loaded(models: Models) -> dict[str, Service]:
    return {service.llm.model_name: service for service in models.loaded}


def _tagged(name: str) -> str:
    """Clients take a name without a tag for one with `latest`, and look for that."""
    return name if ":" in name else f"{name}:latest"


def _digest(status: ModelStatus) -> str:
    """Clients tell models apart by it, and show its beginning. It is none of the files' bytes."""
    return hashlib.sha256(f"{status.name}\0{status.source}\0{status.size}".encode()).hexdigest()


def _rounded(count: int) -> str:
    """134515008 -> 134.52M"""
    for letter, (unit, decimals) in _SIZES.items():
        if count >= unit:
            return f"{count / unit:.{decimals}f}{letter}"
    return str(count)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
