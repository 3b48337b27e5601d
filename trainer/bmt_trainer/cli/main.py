"""The `bmt-train` program: all commands and its exit codes.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from bmt_core import BmtError
from bmt_core.console_script import TYPER_SETTINGS, version_line
from bmt_core.optional_packages import fix, leave_out

from bmt_trainer.cli import compare, data, doctor, evaluate, export, train, worker
from bmt_trainer.errors import ERROR_FILE, ConfigError, TrainerError
from bmt_trainer.methods.guards.interruption import Interrupted
from bmt_trainer.process import (
    has_lost_another,
    is_main_process,
    leave_launch,
    rank,
    world_size,
)

# Commands that several processes run together; of any other the first process runs it alone.
_OF_ALL_PROCESSES = (*train.COMMANDS, "compare")
# Time in which a launcher ends this process if the first one has failed too.
_LAUNCHER_SECONDS = 10.0

app = typer.Typer(
    name="bmt-train",
    help="Train, evaluate and export bit masks of language models.",
    **TYPER_SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(version_line("bmt-train"))
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    if found := leave_out():
        parts = ", ".join(map(str, found))
        print(f"bmt-train: left out, cannot be imported: {parts}; {fix(found)}", file=sys.stderr)
    if world_size() == 1 or context.invoked_subcommand in _OF_ALL_PROCESSES:
        return
    if not is_main_process():
        raise typer.Exit
    line = f"{context.invoked_subcommand} runs in the first of {world_size()} processes alone"
    print(f"bmt-train: {line}", file=sys.stderr)
    leave_launch()


for group in (data, doctor, train, compare, evaluate, export, worker):
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
        _fail(error, 2 if isinstance(error, ConfigError) else 1)
    except OSError as error:  # a full disk, a folder without write permission
        _fail(error, 1)
    except MemoryError as error:  # with a traceback, which says what was too large
        _keep(error)
        raise
    except RuntimeError as error:
        if not has_lost_another(error):
            raise
        _fail(f"another of {world_size()} processes has ended; it says why, or was killed", 1)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _keep(error: Exception) -> None:
    """Write the error to the file that whoever started this process has named."""
    if (path := os.environ.get(ERROR_FILE)) and is_main_process():
        message = (error.strerror if isinstance(error, OSError) else None) or str(error)
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"kind": type(error).__name__, "message": message}))


def _fail(error: Exception | str, code: int) -> NoReturn:
    """Print the error and exit: once, if several processes end with the same.

    A launcher ends all processes when one has failed, so another than the first prints only if it
    is still there after a while: then the error is its own.
    """
    who = "bmt-train"
    if isinstance(error, Exception):
        _keep(error)
    if not is_main_process():
        time.sleep(_LAUNCHER_SECONDS)
        who = f"bmt-train, process {rank()} of {world_size()}"
    print(f"{who}: {error}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
