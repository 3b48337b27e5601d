"""Commands `jobs`: create, list, show, watch and cancel fine-tuning jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from bmt_core.console_script import TYPER_SETTINGS
from rich.console import Console

from bmt_client import BmtClient, BmtClientError, JobEvent, JobInfo, UsageError

from ..output import Output, print_table, printable
from ..session import Session, session
from .files import time_of

app = typer.Typer(help="Fine-tuning jobs; with a key of scope upload.", **TYPER_SETTINGS)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, from `jobs list`.")]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Newest N only.", show_default=False)
]


@app.command()
def create(
    context: typer.Context,
    training_file: Annotated[
        str, typer.Argument(metavar="FILE_ID", help="Id of a file, from `files upload`.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="The server's base.")],
    method: Annotated[str, typer.Option(help="supervised, dpo or reinforcement.")] = "supervised",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A hyperparameter, as n_epochs=3; repeatable."
        ),
    ] = None,
    grader: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Grader of reinforcement: a JSON file.", show_default=False
        ),
    ] = None,
    validation_file: Annotated[
        str | None,
        typer.Option(metavar="FILE_ID", help="File to validate on.", show_default=False),
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Part of the mask's name.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Default: random.", show_default=False)
    ] = None,
) -> None:
    """Start a job and print its id."""
    run = session(context)
    read = None if grader is None else _grader(grader)
    with run.client() as client:
        made = client.jobs.create(
            training_file,
            model,
            method=method,
            hyperparameters=dict(map(_hyperparameter, set_ or [])),
            suffix=suffix,
            seed=seed,
            grader=read,
            validation_file=validation_file,
        )
    run.out.note(f"{method} on {made.model}, seed {made.seed}; bmt-client jobs watch {made.id}")
    run.out.data(made.as_dict(), lambda console: console.print(made.id))


@app.command("list")
def list_jobs(context: typer.Context, limit: Limit = None) -> None:
    """List the tenant's jobs, newest first."""
    run = session(context)
    with run.client() as client:
        found = client.jobs.list(limit=limit)
    run.out.data([one.as_dict() for one in found], lambda console: _print(console, found))


@app.command()
def get(context: typer.Context, job_id: JobId) -> None:
    """Show one job."""
    run = session(context)
    with run.client() as client:
        found = client.jobs.get(job_id)
    run.out.data(found.as_dict(), lambda console: _print(console, (found,)))
    _note_error(run.out, found)


@app.command()
def events(context: typer.Context, job_id: JobId, limit: Limit = None) -> None:
    """Print a job's events, oldest first, with the metrics of its steps."""
    run = session(context)
    with run.client() as client:
        found = client.jobs.events(job_id, limit=limit)[::-1]

    def show(_: Console) -> None:
        for event in found:
            run.out.line(_line(event))

    run.out.data([event.as_dict() for event in found], show)


@app.command()
def cancel(context: typer.Context, job_id: JobId) -> None:
    """Cancel a job that has not ended."""
    run = session(context)
    with run.client() as client:
        found = client.jobs.cancel(job_id)
    run.out.data(found.as_dict(), lambda console: console.print(f"{found.id}  {found.status}"))


@app.command()
def watch(
    context: typer.Context,
    job_id: JobId,
    interval: Annotated[
        float, typer.Option(min=0.2, metavar="S", help="Seconds between two questions.")
    ] = 2.0,
) -> None:
    """Print a job's events as they come, until it ends; exit code 1 if it does not succeed."""
    run = session(context)
    with run.client() as client:
        ended = _watched(run, client, job_id, interval)
    run.out.data(ended.as_dict(), lambda console: console.print(_result(ended)))
    if ended.status != "succeeded":
        _note_error(run.out, ended)
        raise typer.Exit(1)


def _watched(run: Session, client: BmtClient, job_id: str, interval: float) -> JobInfo:
    """The job, once it has ended."""
    last, status = -1, ""
    while True:
        # The job first: the events that are read then are all of one that has ended.
        job = client.jobs.get(job_id)
        for event in _new(client, job_id, last):
            last = max(last, _number(event))
            if not run.out.as_json:
                run.out.line(_line(event))
        if job.ended:
            return job
        if job.status != status:
            status = job.status
            run.out.note(f"{job.id} is {status}")
        time.sleep(interval)


def _new(client: BmtClient, job_id: str, last: int) -> list[JobEvent]:
    """Events after the one numbered `last`, oldest first."""
    limit = 20
    while True:
        found = client.jobs.events(job_id, limit=limit)
        if len(found) < limit or _number(found[-1]) <= last + 1:
            return [event for event in reversed(found) if _number(event) > last]
        limit *= 4


def _number(event: JobEvent) -> int:
    """The event's place in its job: the end of its id."""
    end = event.id.rpartition("-")[2]
    return int(end) if end.isdecimal() and len(end) < 12 else -1


def _hyperparameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--set {text}: give a name and a value, as n_epochs=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # auto


def _grader(path: Path) -> dict[str, Any]:
    """The grader of a file. Raises UsageError."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--grader {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--grader {path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"--grader {path} has no JSON object")
    return found


def _line(event: JobEvent) -> str:
    level = "" if event.level == "info" else f"{event.level}: "
    return printable(f"{time_of(event.created_at)}  {level}{event.message}", lines=False)


def _result(job: JobInfo) -> str:
    return printable(job.fine_tuned_model or f"{job.id}  {job.status}", lines=False)


def _note_error(out: Output, job: JobInfo) -> None:
    if job.error:
        out.failed(BmtClientError(str(job.error.get("message", job.error))), f"{job.id}: ", None)


def _print(console: Console, found: tuple[JobInfo, ...]) -> None:
    columns = ["ID", "STATUS", "METHOD", "MODEL", "CREATED", "RESULT"]
    rows = [
        (
            *(one.id, one.status, str(one.method.get("type", "")), one.model),
            *(time_of(one.created_at), one.fine_tuned_model or ""),
        )
        for one in found
    ]
    print_table(console, columns, rows)
