"""`pellucid generate`: one prompt, one answer, no server."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.options import configured
from pellucid.cli.sampling import Sampling
from pellucid.config import EngineConfig
from pellucid.errors import ConfigError

if TYPE_CHECKING:
    from pellucid.cli.answer import Answer


@configured()
def generate(
    engine: EngineConfig,
    sampling: Sampling,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text; - reads it from stdin.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, counts and timings.")
    ] = False,
) -> None:
    """Answer one prompt in the terminal.

    The text streams to stdout; its token counts and speed go to stderr.
    """
    text = _prompt_text(prompt)
    if raw and system is not None:
        raise ConfigError("--system has no meaning with --raw: there is no chat template")
    request: str | list[dict[str, Any]] = text if raw else _conversation(system, text)
    answer = asyncio.run(_answer(engine, sampling, request, quiet=json))
    if json:
        import msgspec

        print(msgspec.json.encode(answer).decode())
    else:
        from pellucid.cli.console import remark

        print()
        remark(answer.summary())


def _prompt_text(prompt: str | None) -> str:
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if not prompt:
        raise ConfigError("--prompt: give a text, or - to read it from stdin", param="prompt")
    return prompt


def _conversation(system: str | None, text: str) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


async def _answer(
    engine: EngineConfig,
    sampling: Sampling,
    prompt: str | list[dict[str, Any]],
    *,
    quiet: bool,
) -> Answer:
    from pellucid.cli.answer import stream_answer
    from pellucid.cli.console import write_text
    from pellucid.cli.local import open_model

    params = sampling.params()
    async with open_model(engine) as llm:
        return await stream_answer(llm, prompt, params, (lambda _: None) if quiet else write_text)
