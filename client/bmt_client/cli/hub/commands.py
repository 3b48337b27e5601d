"""Commands `push` and `pull`: masks on the Hugging Face Hub. They ask no bmt-server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bmt_client import UsageError
from bmt_client import hub as masks_of_hub
from bmt_client._files import hex_sha256, read_file, write_atomically
from bmt_client.hub import Fetched

from ..output import percent, short, size
from ..session import Session, session

Place = Annotated[
    str, typer.Argument(metavar="PLACE", help="hf://org/name[@revision][/file.bmt]; see HF_TOKEN.")
]


def push(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .bmt file.")],
    place: Place,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Of a repository that is made. Default: the account's.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="Of the commit.", show_default=False),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The base's repository, for the card. Default: as the mask has it.",
            show_default=False,
        ),
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a README.md that no push wrote.")
    ] = False,
) -> None:
    """Push a mask to the Hugging Face Hub with a model card, in one commit."""
    run = session(context)
    with run.out.progress(f"pushing {file}"):
        pushed = masks_of_hub.push(
            file,
            place,
            private=private,
            message=message,
            base_model=base_model,
            replace_card=replace_card,
            say=run.out.note,
        )
    word, color = ("pushed", "green") if pushed.outcome == "created" else ("unchanged", "yellow")
    line = Text.assemble((pushed.place, "bold"), "  ", (word, color), f"  {pushed.url}")
    line.append(f"  commit {pushed.commit[:12]}", "dim")
    run.out.data(pushed.as_dict(), lambda _: run.out.line(line))


def pull(
    context: typer.Context,
    place: Place,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File, folder, or - for stdout. Default: the file's name here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fetch a mask from the Hugging Face Hub, verified, as a file."""
    run = session(context)
    to_stdout = run.out.takes_file(output)
    with run.out.progress(f"reading {place}"):
        fetched = masks_of_hub.pull(place)
    if to_stdout:
        run.out.file(fetched.data)
        return
    _report(run, fetched, _written(fetched, output))


def _written(fetched: Fetched, output: str | None) -> Path:
    """The file that is written; another one there is replaced only where `output` names it."""
    path = Path(output or ".")
    if path.is_dir():
        path = path / fetched.place.name
        if path.exists() and read_file(path) != fetched.data:
            raise UsageError(f"{path} exists and is another file; name the one to write with -o")
    write_atomically(path, fetched.data)
    return path


def _report(run: Session, fetched: Fetched, path: Path) -> None:
    mask = fetched.mask
    value = {
        "place": str(fetched.place),
        "path": str(path),
        "bytes": len(fetched.data),
        "file_digest": hex_sha256(fetched.data),
        "digest": mask.digest,
        "base": {"model_id": mask.base.model_id, "fingerprint": mask.base.fingerprint},
        "zeros": mask.zeros,
        "sparsity": mask.sparsity,
    }
    facts = f"{mask.zeros:,} zeros, {percent(mask.sparsity)}, {size(len(fetched.data))}"
    line = Text.assemble((str(path), "bold"), f"  {fetched.place}")
    line.append(f"  {short(mask.digest)}  ({facts})", "dim")
    line.append(f"  base {mask.base.model_id} ({short(mask.base.fingerprint)})", "dim")
    run.out.data(value, lambda _: run.out.line(line))
