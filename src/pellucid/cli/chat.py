"""`pellucid chat`: a conversation in the terminal, with a model here or on a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from pellucid.cli.options import configured
from pellucid.cli.sampling import Sampling
from pellucid.config import EngineConfig
from pellucid.errors import BadRequest, Overloaded, RequestTimeout

if TYPE_CHECKING:
    from pellucid.cli.answer import Answer
    from pellucid.frontend.async_engine import AsyncLLM
    from pellucid.sampling_params import SamplingParams

HELP = """\
/reset         forget the conversation
/system TEXT   set the system message and start over; without TEXT, remove it
/help          show this
/quit          leave, as Ctrl-D does; Ctrl-C stops an answer"""

Messages = list[dict[str, Any]]


class Partner(Protocol):
    """Whom one talks to."""

    name: str

    async def answer(self, messages: Messages, on_text: Callable[[str], None]) -> Answer: ...


class LocalPartner:
    """A model in this process."""

    def __init__(self, llm: AsyncLLM, params: SamplingParams) -> None:
        self.name = llm.model_name
        self._llm = llm
        self._params = params

    async def answer(self, messages: Messages, on_text: Callable[[str], None]) -> Answer:
        from pellucid.cli.answer import stream_answer

        return await stream_answer(self._llm, messages, self._params, on_text)


@configured()
def chat(
    engine: EngineConfig,
    sampling: Sampling,
    system: Annotated[str | None, typer.Option(help="System message to begin with.")] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Talk to this server instead; needs pellucid[bench]."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token for --url.")
    ] = None,
) -> None:
    """Talk to a model in the terminal.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists what else can be typed.
    """
    # One loop for the whole conversation: the engine lives on it between the turns. Its Ctrl-C
    # cancels only what `run` was given, which is one answer.
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            partner = runner.run(_open_partner(stack, engine, sampling, url, api_key))
            Conversation(partner, runner, system).run()
        finally:
            runner.run(stack.aclose())


class Conversation:
    """The loop of reading, answering and remembering."""

    def __init__(self, partner: Partner, runner: asyncio.Runner, system: str | None) -> None:
        self._partner = partner
        self._runner = runner
        self._system = system
        self._turns: Messages = []

    def run(self) -> None:
        from pellucid.cli.console import remark

        with contextlib.suppress(ImportError):  # no line editing where there is no readline
            import readline  # noqa: F401

        remark(f"{self._partner.name}: /help for help, Ctrl-D to leave")
        while (line := _read_line()) is not None:
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line:
                self._answer(line)

    def _obey(self, line: str) -> bool:
        """Carry out a command; return whether the conversation goes on."""
        from pellucid.cli.console import remark

        command, _, text = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/reset":
            self._turns.clear()
        elif command == "/system":
            self._system = text.strip() or None
            self._turns.clear()
        else:
            unknown = "" if command == "/help" else f"there is no {command}\n"
            remark(unknown + HELP)
        return True

    def _answer(self, line: str) -> None:
        from pellucid.cli.console import remark, write_text

        heard: list[str] = []

        def on_text(text: str) -> None:
            heard.append(text)
            write_text(text)

        self._turns.append({"role": "user", "content": line})
        try:
            answer = self._runner.run(self._partner.answer(self._messages(), on_text))
        except KeyboardInterrupt:
            outcome = "stopped"
        except (BadRequest, Overloaded, RequestTimeout) as error:
            outcome = f"{error.message} (/reset starts over)"
        else:
            outcome = answer.summary()
        if heard:
            print()
            self._turns.append({"role": "assistant", "content": "".join(heard)})
        else:
            self._turns.pop()  # what got no answer was not said
        remark(outcome)

    def _messages(self) -> Messages:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *self._turns]


async def _open_partner(
    stack: contextlib.AsyncExitStack,
    engine: EngineConfig,
    sampling: Sampling,
    url: str | None,
    api_key: str | None,
) -> Partner:
    """Whom to talk to, closed by `stack`."""
    params = sampling.params()
    if url is not None:
        from pellucid.cli.remote import RemotePartner

        return await stack.enter_async_context(RemotePartner(url, api_key, params))
    from pellucid.cli.local import open_model

    return LocalPartner(await stack.enter_async_context(open_model(engine)), params)


def _read_line() -> str | None:
    """The next line; empty after Ctrl-C, None at the end."""
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""
