"""The command line: `pellucid serve | xray | chat | generate | pull | models | bench | lab | ..."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pellucid.errors import BadRequest, ConfigError, PellucidError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `pellucid` command.

    An error becomes one line on stderr and exit code 2 when the user's input was wrong, 1
    otherwise. Tracebacks are shown only with --debug or PELLUCID_DEBUG.
    """
    from pellucid.cli.app import app

    try:
        app(args=arguments, prog_name="pellucid")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get("PELLUCID_DEBUG"):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        usage = isinstance(error, ConfigError | BadRequest)
        sys.exit(EXIT_USAGE if usage else EXIT_FAILURE)


def explain(error: Exception) -> str:
    """One line about an error; a field's name at its head becomes the flag."""
    if not isinstance(error, PellucidError):
        return f"{type(error).__name__}: {error} (a bug; --debug shows where)"
    param = error.param or ""
    rest = error.message.removeprefix(param)
    flagged = isinstance(error, BadRequest | ConfigError) and rest.startswith((" ", ":"))
    return "--" + param.replace("_", "-") + rest if flagged else error.message
