"""`pellucid doctor`: what this machine has, what would be used, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli.options import configured
from pellucid.config import EngineConfig, ServerConfig

if TYPE_CHECKING:
    from pellucid.cli.diagnosis import Diagnosis

GUESSES = {
    "none": "one token a step",
    "ngram": "what the text repeats (--speculative ngram)",
    "draft": "what the text repeats, and what a draft model says (--speculative draft)",
}


@configured()
def doctor(
    engine: EngineConfig,
    server: ServerConfig,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show this machine, what would run on it with these settings, and what is missing.

    Takes the settings of `serve`; loads and downloads nothing. Exit code 1 if there are problems.
    """
    from pellucid.cli.diagnosis import diagnose

    found = diagnose(engine, server)
    if json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        _show(found)
    raise typer.Exit(1 if found.problems else 0)


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _lines(found):
        table.add_row(name, escape(text))
    for problem in found.problems:
        table.add_row("[red]problem[/]", escape(problem))
    Console(highlight=False).print(table)


def _lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    machine = found.machine
    yield "system", f"{machine['system']}, {machine['architecture']}"
    yield (
        "CPU",
        f"{machine['cpu']}, {machine['physical_cores']} cores, {machine['usable_cores']:g} usable",
    )
    yield "", ", ".join(machine["instruction_sets"]) or "instruction sets unknown"
    limit = machine["ram_limit_mib"]
    yield (
        "RAM",
        f"{machine['ram_available_mib']:,} of {machine['ram_total_mib']:,} MiB available"
        + (f", limited to {limit:,} MiB" if limit is not None else ""),
    )
    for gpu in machine["gpus"]:
        capability = gpu["compute_capability"]
        yield "GPU", f"{gpu['name']}, {gpu['memory_mib']:,} MiB, compute {capability}"
    yield (
        "versions",
        ", ".join(f"{name} {version or 'missing'}" for name, version in found.versions.items()),
    )
    if found.compute is not None:
        yield (
            "compute",
            "{device}, {dtype}, {kernels} kernels, {threads} threads, {ranks} ranks".format(
                **found.compute
            ).removesuffix(", 1 ranks"),
        )
        yield "guesses", GUESSES[found.compute["speculative"]]
    for kernel in found.kernels:
        yield "kernels", f"{kernel['name']}: {kernel['reason']}"
    yield from _model_lines(found)
    address = found.address
    state = "free" if address["free"] else "not free"
    yield "address", f"{address['host']}:{address['port']} is {state}"


def _model_lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    for what, model in (("model", found.model), ("draft model", found.draft_model)):
        if model is not None:
            yield what, "{name}: {path}".format(**model)
            yield (
                "",
                "{architecture}, {parameters:,} parameters, {layers} layers, context {context:,},"
                " {size_mib:,} MiB on disk".format(**model),
            )
    if found.memory is not None:
        yield (
            "memory",
            "{weights_mib:,} MiB of weights, {kv_pool_mib:,} MiB of KV cache for"
            " {kv_pool_tokens:,} tokens; {available_mib:,} MiB available".format(**found.memory),
        )
