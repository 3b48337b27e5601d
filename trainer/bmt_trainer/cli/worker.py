"""`bmt-train worker`: run the fine-tuning jobs of a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bmt_trainer.errors import ConfigError

_FOLDER = Path("bmt-worker")


def worker(
    model: Annotated[
        str, typer.Option(help="Folder of the server's checkpoint, or its model of the Hub.")
    ],
    server: Annotated[
        str,
        typer.Option(
            help="URL of the server whose jobs to run; the key, of scope train, is BMT_API_KEY."
        ),
    ],
    folder: Annotated[
        Path,
        typer.Option(help="Folder of jobs that run. Workers of one host, or disk, may share it."),
    ] = _FOLDER,
    lease_seconds: Annotated[
        int,
        typer.Option(
            min=3,
            max=3600,
            metavar="s",
            help="Time without a word after which another worker takes a job.",
        ),
    ] = 60,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, metavar="s", help="Time between questions for a job.")
    ] = 5.0,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, metavar="steps", help="Steps between checkpoints.")
    ] = 50,
    max_length: Annotated[
        int, typer.Option(min=1, metavar="tokens", help="Longest row; a longer one is an error.")
    ] = 1024,
    max_file_mib: Annotated[
        int, typer.Option(min=1, metavar="MiB", help="Largest training file to take.")
    ] = 1024,
    max_new_tokens: Annotated[
        int,
        typer.Option(min=1, metavar="tokens", help="Longest answer in a reinforcement job."),
    ] = 256,
    run_grader_code: Annotated[
        bool,
        typer.Option(
            "--run-grader-code", help="Run the code of python graders, in a sandbox of Linux."
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="Device to train on: auto, cpu, cuda or mps.")
    ] = "auto",
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
) -> None:
    """Run the fine-tuning jobs of a server: train each, and publish its mask there."""
    import bmt_core

    from bmt_trainer.jobs.connection import Connection, worker_name
    from bmt_trainer.jobs.settings import TrainingSettings
    from bmt_trainer.jobs.transfers import Times
    from bmt_trainer.jobs.worker import Worker, WorkerSettings, work_folder
    from bmt_trainer.models import checkpoint_folder

    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"device: {device} is none of auto, cpu, cuda, mps")

    def say(line: str) -> None:
        print(f"bmt-train worker: {line}", file=sys.stderr, flush=True)

    # Trainings run in the folders of their jobs.
    place = checkpoint_folder(model).absolute()
    work = work_folder(folder)
    settings = WorkerSettings(
        base=bmt_core.fingerprint(place),
        folder=work,
        train=TrainingSettings(
            {
                "model": str(place),
                "checkpoint_every": checkpoint_every,
                "max_length": max_length,
                "device": device,
            },
            max_new_tokens=max_new_tokens,
            server=server,
            run_code=run_grader_code,
        ),
        times=Times(poll_s=poll_seconds, report_s=min(10.0, lease_seconds / 4)),
        max_file_bytes=max_file_mib << 20,
        once=once,
    )
    api = Connection(server, worker_name(), lease_seconds)
    say(f"jobs of {api.url} for {model}, base {settings.base[:12]}, in {work}")
    found = Worker(api, settings, say)
    found.run()
    if found.signum:
        raise SystemExit(128 + found.signum)


def add(app: typer.Typer) -> None:
    """Add the command to `bmt-train`."""
    app.command()(worker)
