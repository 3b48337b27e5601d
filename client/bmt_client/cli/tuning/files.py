"""Commands `files`: upload, list, get, delete and read files for fine-tuning."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from bmt_core.console_script import TYPER_SETTINGS
from rich.console import Console

from bmt_client import FileInfo, UsageError

from ..output import print_table, size
from ..session import session

app = typer.Typer(
    help="Files of rows for fine-tuning; with a key of scope upload.", **TYPER_SETTINGS
)

FileId = Annotated[str, typer.Argument(metavar="ID", help="Id of a file, from `files list`.")]


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file of rows.")],
) -> None:
    """Upload a file and print its id. A row that is not valid is named."""
    run = session(context)
    with run.client() as client, run.out.progress("upload") as progress:
        made = client.files.upload(path, progress=progress)
    run.out.note(f"{made.filename}: {size(made.bytes)}")
    run.out.data(made.as_dict(), lambda console: console.print(made.id))


@app.command("list")
def list_files(
    context: typer.Context,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Newest N only.", show_default=False)
    ] = None,
) -> None:
    """List the tenant's files, newest first."""
    run = session(context)
    with run.client() as client:
        found = client.files.list(limit=limit)
    run.out.data([one.as_dict() for one in found], lambda console: _print(console, found))


@app.command()
def get(context: typer.Context, file_id: FileId) -> None:
    """Show one file, without its content."""
    run = session(context)
    with run.client() as client:
        found = client.files.get(file_id)
    run.out.data(found.as_dict(), lambda console: _print(console, (found,)))


@app.command()
def content(
    context: typer.Context,
    file_id: FileId,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write. Default: stdout, with --json ID.jsonl, or ID.csv of results.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a file's bytes to stdout, or to a file."""
    run = session(context)
    if output is None and not run.out.as_json:
        output = "-"
    to_stdout = run.out.takes_file(output)
    with run.client() as client, run.out.progress("download") as progress:
        if output is None:
            results = client.files.get(file_id).purpose == "fine-tune-results"
            output = f"{Path(file_id).name}.{'csv' if results else 'jsonl'}"
        data = client.files.content(file_id, progress=progress)
    if to_stdout:
        run.out.file(data)
        return
    try:
        Path(output).write_bytes(data)
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror or error}") from None
    value = {"id": file_id, "path": output, "bytes": len(data)}
    run.out.data(value, lambda console: console.print(f"{output}  {size(len(data))}"))


@app.command()
def delete(
    context: typer.Context,
    file_id: FileId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a file. A job that has not read it yet fails."""
    run = session(context)
    if not yes and not run.out.as_json and sys.stdin.isatty():
        typer.confirm(f"Delete {file_id}?", abort=True, err=True)
    with run.client() as client:
        client.files.delete(file_id)
    run.out.data(
        {"id": file_id, "deleted": True}, lambda console: console.print(f"{file_id}  deleted")
    )


def time_of(seconds: int) -> str:
    """Seconds since 1970 as a time, UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6]
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _print(console: Console, found: tuple[FileInfo, ...]) -> None:
    rows = [(one.id, one.filename, size(one.bytes), time_of(one.created_at)) for one in found]
    print_table(console, ["ID", "NAME", "SIZE", "CREATED"], rows)
