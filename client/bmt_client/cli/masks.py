"""Commands on masks: upload, list, show, delete, download, pin, unpin, models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bmt_client import MaskInfo, Upload, UsageError, Version
from bmt_client._files import prepare

from .output import age, percent, print_facts, print_table, short, size
from .session import Name, Ref, parse_alias, parse_digest, parse_name, session

STDIN_BYTES = 1 << 30  # bound on a file from a pipe, bytes

_PAGE = 500  # masks of a list that are read and printed at a time
_NUMBERS = ("REV", "ZEROS", "SPARSITY", "SIZE", "AGE")


def upload(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .bmt file, or - for stdin.")],
    name: Annotated[
        str | None,
        typer.Option(
            parser=parse_name, metavar="NAME", help="Default: the file's stem.", show_default=False
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            parser=parse_alias, metavar="ALIAS", help="Also point this alias at it; repeatable."
        ),
    ] = None,
    if_match: Annotated[
        str | None,
        typer.Option(
            parser=parse_digest, metavar="DIGEST", help="Only if this version is the latest."
        ),
    ] = None,
    if_new: Annotated[
        bool, typer.Option("--if-new", help="Only if the name does not exist yet.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate the file locally, send nothing.")
    ] = False,
) -> None:
    """Upload a mask as the latest version of its name."""
    run = session(context)
    source = _stdin() if file == "-" else Path(file)
    if dry_run:
        checked = prepare(source, name)
        run.out.data(
            {
                "name": checked.name,
                "digest": checked.digest,
                "file_digest": checked.sha256.hex(),
                "bytes": len(checked.data),
                "zeros": checked.mask.zeros,
                "sparsity": checked.mask.sparsity,
                "valid": True,
            },
            lambda console: console.print(
                f"{checked.name}@{short(checked.digest)}  valid, not sent  "
                f"({_facts(checked.mask.zeros, checked.mask.sparsity, len(checked.data))})"
            ),
        )
        return
    with run.client() as client, run.out.progress("uploading") as progress:
        uploaded = client.upload(
            source,
            name,
            alias=alias or (),
            if_match=if_match,
            if_none_match=if_new,
            progress=progress,
        )
    run.out.data(uploaded.as_dict(), lambda console: console.print(_uploaded(uploaded)))


def list_masks(context: typer.Context) -> None:
    """List all masks with their latest versions."""
    run = session(context)
    wide = run.out.stdout.width >= 100
    columns = ["NAME", "DIGEST", "REV", "ALIASES", "ZEROS", "SPARSITY", "AGE"]
    if wide:
        columns[-1:] = ["SIZE", "AGE", "BASE"]

    def row(mask: MaskInfo) -> list[Text | str]:
        return [
            mask.name,
            short(mask.digest),
            str(mask.rev),
            _aliases(mask),
            f"{mask.zeros:,}",
            percent(mask.sparsity),
            *([size(mask.bytes)] if wide else []),
            age(mask.created),
            *([mask.base.model_id] if wide else []),
        ]

    with run.client() as client:
        count = run.out.stream(
            client.list(page_size=_PAGE),
            MaskInfo.as_dict,
            lambda masks, first: print_table(
                run.out.stdout, columns, [row(mask) for mask in masks], _NUMBERS, head=first
            ),
            at_once=_PAGE,
        )
    if not count:
        run.out.note("no masks yet; add one with: bmt-client upload mask.bmt")


def show(context: typer.Context, ref: Ref) -> None:
    """Show one version of a mask."""
    run = session(context)
    with run.client() as client:
        version = client.get(ref)
    run.out.data(
        version.as_dict(), lambda console: print_facts(console, _details(version), version.metadata)
    )


def delete(
    context: typer.Context,
    ref: Ref,
    version: Annotated[
        bool, typer.Option("--version", help="Delete only the version that REF names now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a mask, or one of its versions.

    `math` deletes all its versions; math@3f9c0a1b2c3d, or any REF with --version, only one.
    """
    run = session(context)
    if ":" in ref and not version:
        raise UsageError(
            f"{ref} names an alias: add --version to delete its version, or remove only "
            f"the alias with: bmt-client alias {ref.replace(':', ' ')} --delete"
        )
    one = version or "@" in ref
    with run.client() as client:
        if not yes and not run.out.as_json and sys.stdin.isatty():
            what = f"version {ref}" if one else f"{ref} and all its versions"
            if not typer.confirm(f"Delete {what}?", err=True):
                raise typer.Exit(1)
        if one:
            target = client.get(ref)
            client.delete_version(target.name, target.digest)
            deleted = target.model
        else:
            client.delete(ref)
            deleted = ref
    run.out.data({"deleted": deleted}, lambda console: console.print(f"{deleted}  deleted"))


def download(
    context: typer.Context,
    ref: Ref,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File, folder, or - for stdout. Default: NAME.bmt here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Download the file of a mask, verified against its digest."""
    run = session(context)
    with run.client() as client, run.out.progress("downloading") as progress:
        if output == "-":
            data = client.read(ref, progress=progress)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        path = client.download(ref, output, progress=progress)
    count = path.stat().st_size
    run.out.data(
        {"ref": ref, "path": str(path), "bytes": count},
        lambda console: console.print(f"{path}  {ref}  ({size(count)})"),
    )


def pin(context: typer.Context, name: Name) -> None:
    """Keep a mask resident in the workers."""
    _pin(context, name, True)


def unpin(context: typer.Context, name: Name) -> None:
    """Allow the workers to evict a mask again."""
    _pin(context, name, False)


def models(context: typer.Context) -> None:
    """List the names that a request may give as `model`."""
    run = session(context)
    with run.client() as client:
        entries = client.models()

    def show(console: Console) -> None:
        rows = [
            [model.id, "mask" if model.parent else "base", model.parent or model.root]
            for model in entries
        ]
        print_table(console, ["MODEL", "KIND", "BASE"], rows)

    run.out.data([model.as_dict() for model in entries], show)


def _pin(context: typer.Context, name: str, pinned: bool) -> None:
    run = session(context)
    with run.client() as client:
        (client.pin if pinned else client.unpin)(name)
    word = "pinned" if pinned else "unpinned"
    run.out.data({"name": name, "pinned": pinned}, lambda console: console.print(f"{name}  {word}"))


def _stdin() -> bytes:
    if sys.stdin.isatty():
        raise UsageError("- reads the mask from stdin, which is a terminal; pipe a file into it")
    data = sys.stdin.buffer.read(STDIN_BYTES + 1)
    if len(data) > STDIN_BYTES:
        raise UsageError(f"stdin has more than {STDIN_BYTES} bytes, the bound on a mask")
    return data


def _uploaded(version: Upload) -> Text:
    line = Text.assemble((version.model, "bold"), f"  rev {version.rev}  ")
    word = {"created": "uploaded", "moved": "latest again"}.get(version.outcome, version.outcome)
    line.append(word, "green" if version.changed else "yellow")
    line.append(f"  ({_facts(version.zeros, version.sparsity, version.bytes)})", "dim")
    if aliases := _aliases(version):
        line.append(f"  {aliases}", "cyan")
    return line


def _facts(zeros: int, sparsity: float, count: int) -> str:
    return f"{zeros:,} zeros, {percent(sparsity)}, {size(count)}"


def _aliases(version: Version) -> str:
    # In a list of latest versions, every one has the alias `latest`.
    names = [alias for alias in version.aliases if alias != "latest"]
    pinned = ["(pinned)"] if version.pinned else []
    until = [f"(until {version.expires[:16]} UTC)"] if version.expires else []
    return ", ".join([*names, *pinned, *until])


def _details(version: Version) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [
        ("model", Text(version.model, style="bold")),
        ("digest", version.digest),
        ("rev", str(version.rev)),
        ("aliases", ", ".join(version.aliases) or "none"),
        ("created", f"{version.created} ({age(version.created)})"),
        ("zeros", f"{version.zeros:,} ({percent(version.sparsity)} of the gate weights)"),
        ("size", size(version.bytes)),
        ("sha256", version.file_digest),
        ("base", f"{version.base.model_id} ({short(version.base.fingerprint)})"),
        ("parent", short(version.parent) if version.parent else "none"),
        ("pinned", "yes" if version.pinned else "no"),
        ("expires", version.expires or "never"),
    ]
    return rows
