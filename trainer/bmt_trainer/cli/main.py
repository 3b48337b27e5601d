"""The `bmt-train` program: all commands and its exit codes.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from bmt_core import BmtError
from bmt_core.console_script import TYPER_SETTINGS, version_line

from bmt_trainer.cli import apply, compare, data, evaluate, train
from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.methods.guards.interruption import Interrupted

app = typer.Typer(
    name="bmt-train",
    help="Train, evaluate and apply bit masks of language models.",
    **TYPER_SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(version_line("bmt-train"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None: ...


for group in (data, train, compare, evaluate, apply):
    group.add(app)


def main() -> None:
    """Run the program; errors that a user can fix print as one line, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A name of a file, or a row, may have characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (TrainerError, BmtError) as error:
        print(f"bmt-train: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:  # a full disk, a folder without write permission
        print(f"bmt-train: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
