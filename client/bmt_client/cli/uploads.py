"""Commands `upload`, for one file or several, and `import`, for a file that the server reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from bmt_client import Upload, UsageError, hub
from bmt_client._files import Prepared, prepare
from bmt_client._names import name_from_path

from .imported import imported_name
from .many import for_each
from .output import aliases, percent, short, size
from .session import parse_alias, parse_digest, session

STDIN_BYTES = 1 << 30  # bound on a file from a pipe, bytes

Aliases = Annotated[
    list[str] | None,
    typer.Option(
        parser=parse_alias, metavar="ALIAS", help="Also point this alias at it; repeatable."
    ),
]
IfNew = Annotated[bool, typer.Option("--if-new", help="Only if the name does not exist yet.")]


def upload(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help=".bmt files, hf://org/name[@revision][/file.bmt] of the Hub, or - for stdin.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Default: the file's stem, or the repository's name where a place has no file. "
            "Acme/Bot, as on the Hub, becomes acme.bot.",
            show_default=False,
        ),
    ] = None,
    alias: Aliases = None,
    if_match: Annotated[
        str | None,
        typer.Option(
            parser=parse_digest, metavar="DIGEST", help="Only if this version is the latest."
        ),
    ] = None,
    if_new: IfNew = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate the file locally, send nothing.")
    ] = False,
) -> None:
    """Upload masks, each as the latest version of its name."""
    run = session(context)
    name = imported_name(run.out, name)
    if len(files) > 1:
        _check_several(files, name, if_match)
    if dry_run:
        for_each(
            run,
            "file",
            files,
            lambda f: prepare(_source(f), _own_name(f, name)),
            _checked,
            _valid,
        )
        return
    with run.client() as client:

        def send(file: str) -> Upload:
            source = _source(file)
            with run.out.progress(f"uploading {file}") as progress:
                return client.upload(
                    source,
                    _own_name(file, name),
                    alias=alias or (),
                    if_match=if_match,
                    if_none_match=if_new,
                    progress=progress,
                )

        for_each(run, "file", files, send, Upload.as_dict, uploaded_line)


def import_mask(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="hf://org/name/file.bmt, s3://bucket/key, https://host/path, or of the server: "
            "sha256:…, name@digest, name:alias.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Default: the stem of the source's file.", show_default=False
        ),
    ] = None,
    alias: Aliases = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="Only if the file has this SHA-256, 64 hex digits."),
    ] = None,
    if_new: IfNew = False,
) -> None:
    """Have the server read a mask from a source; its operator names the places (--import-from)."""
    run = session(context)
    with run.client() as client, run.out.progress(f"importing {source.partition('?')[0]}"):
        version = client.import_mask(
            source,
            imported_name(run.out, name) or _name_of(source),
            alias=alias or (),
            digest=digest,
            if_none_match=if_new,
        )
    run.out.data(version.as_dict(), lambda _: run.out.line(uploaded_line(version)))


def _name_of(source: str) -> str:
    """The name by a source's file. Raises UsageError if it has none."""
    if "://" not in source:
        raise UsageError("--name is missing: this source has no file to take a name from")
    return name_from_path(Path(source.partition("?")[0].rpartition("/")[2]))


def uploaded_line(version: Upload) -> Text:
    """`math@3f9c…  rev 2  uploaded  (42 zeros, 0.2 %, 1 kB)`."""
    line = Text.assemble((version.model, "bold"), f"  rev {version.rev}  ")
    word = {"created": "uploaded", "moved": "latest again"}.get(version.outcome, version.outcome)
    line.append(word, "green" if version.changed else "yellow")
    line.append(f"  ({_facts(version.zeros, version.sparsity, version.bytes)})", "dim")
    if names := aliases(version):
        line.append(f"  {names}", "cyan")
    return line


def _check_several(files: list[str], name: str | None, if_match: str | None) -> None:
    for option, given in (("--name", name), ("--if-match", if_match)):
        if given is not None:
            raise UsageError(f"{option} is for one file; there are {len(files)}")
    if "-" in files:
        raise UsageError("- is for one mask, from stdin; upload the files on their own")
    owners: dict[str, str] = {}
    for file in files:
        made = _own_name(file, None) or name_from_path(Path(file))
        if made in owners:
            raise UsageError(
                f"{owners[made]} and {file} would both be {made}; "
                "upload them on their own, with --name"
            )
        owners[made] = file


def _own_name(file: str, name: str | None) -> str | None:
    """`name`, or that of a place on the Hub; None for the upload's own default."""
    if name is None and hub.is_place(file):
        return name_from_path(Path(hub.parse_place(file).name))
    return name


def _source(file: str) -> Path | bytes:
    if hub.is_place(file):
        return hub.pull(file).data
    if file != "-":
        return Path(file)
    if sys.stdin.isatty():
        raise UsageError("- reads the mask from stdin, which is a terminal; pipe a file into it")
    data = sys.stdin.buffer.read(STDIN_BYTES + 1)
    if len(data) > STDIN_BYTES:
        raise UsageError(f"stdin has more than {STDIN_BYTES} bytes, the bound on a mask")
    return data


def _checked(file: Prepared) -> dict[str, Any]:
    return {
        "name": file.name,
        "digest": file.digest,
        "file_digest": file.sha256.hex(),
        "bytes": len(file.data),
        "zeros": file.mask.zeros,
        "sparsity": file.mask.sparsity,
        "valid": True,
    }


def _valid(file: Prepared) -> str:
    facts = _facts(file.mask.zeros, file.mask.sparsity, len(file.data))
    return f"{file.name}@{short(file.digest)}  valid, not sent  ({facts})"


def _facts(zeros: int, sparsity: float, count: int) -> str:
    return f"{zeros:,} zeros, {percent(sparsity)}, {size(count)}"
