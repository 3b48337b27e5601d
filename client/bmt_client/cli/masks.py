"""Commands on masks: list, show, delete, download, pin, unpin, models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from heapq import nlargest, nsmallest
from itertools import islice
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from bmt_client import MaskInfo, UsageError, Version

from .many import for_each
from .output import age, aliases, percent, print_facts, print_table, short, size, splits
from .session import Names, Ref, Refs, Session, parse_alias, session

_PAGE = 500  # masks of a list that are read and printed at a time
_NUMBERS = ("REV", "ZEROS", "SPARSITY", "SIZE", "AGE")


_SORT_KEYS: dict[str, Callable[[MaskInfo], Any]] = {
    "created": lambda mask: mask.created,
    "size": lambda mask: mask.bytes,
    "versions": lambda mask: mask.versions,
    "zeros": lambda mask: mask.zeros,
}


def list_masks(
    context: typer.Context,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Only names like these, such as 'math-*'."),
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(
            parser=parse_alias,
            metavar="ALIAS",
            help="Only masks whose latest version has this alias.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Only masks of this base model.")
    ] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Only pinned masks.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after this number of masks.")
    ] = None,
    sort: Annotated[
        Literal["name", "created", "size", "versions", "zeros"],
        typer.Option(help="Order. All but `name` read the whole list first."),
    ] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", help="Largest or newest first.")] = False,
) -> None:
    """List masks with their latest versions."""
    run = session(context)

    def wanted(mask: MaskInfo) -> bool:
        return (
            (not patterns or any(fnmatchcase(mask.name, pattern) for pattern in patterns))
            and (alias is None or alias in mask.aliases)
            and (base is None or mask.base.model_id == base)
            and (not pinned or mask.pinned)
        )

    with run.client() as client:
        masks = (mask for mask in client.list(page_size=_PAGE) if wanted(mask))
        _print_list(run, _ordered(masks, sort, reverse, limit))


def _ordered(
    masks: Iterator[MaskInfo], sort: str, reverse: bool, limit: int | None
) -> Iterator[MaskInfo]:
    """The masks in order, read as they are taken if the order is the server's: by name."""
    if sort == "name" and not reverse:
        return islice(masks, limit)
    key = _SORT_KEYS.get(sort, lambda mask: mask.name)
    if limit is None:
        return iter(sorted(masks, key=key, reverse=reverse))
    return iter((nlargest if reverse else nsmallest)(limit, masks, key=key))


def _print_list(run: Session, listed: Iterator[MaskInfo]) -> None:
    wide = run.out.stdout.width >= 100
    columns = ["NAME", "DIGEST", "REV", "ALIASES", "ZEROS", "SPARSITY", "AGE"]
    if wide:
        columns[-1:] = ["SIZE", "AGE", "BASE"]

    def row(mask: MaskInfo) -> list[Text | str]:
        return [
            mask.name,
            short(mask.digest),
            str(mask.rev),
            aliases(mask),
            f"{mask.zeros:,}",
            percent(mask.sparsity),
            *([size(mask.bytes)] if wide else []),
            age(mask.created),
            *([mask.base.model_id] if wide else []),
        ]

    count = run.out.stream(
        listed,
        MaskInfo.as_dict,
        lambda masks, first: print_table(
            run.out.stdout, columns, [row(mask) for mask in masks], _NUMBERS, head=first
        ),
        at_once=_PAGE,
    )
    if not count:
        run.out.note("no masks; add one with: bmt-client upload mask.bmt")


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
    refs: Refs,
    version: Annotated[
        bool, typer.Option("--version", help="Delete only the version that REF names now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete masks, or single versions.

    `math` deletes all its versions; math@3f9c0a1b2c3d, or any REF with --version, only one.
    """
    run = session(context)
    for ref in refs:
        if ":" in ref and not version:
            raise UsageError(
                f"{ref} names an alias: add --version to delete its version, or remove only "
                f"the alias with: bmt-client alias {ref.replace(':', ' ')} --delete"
            )
    with run.client() as client:
        if not yes and not run.out.as_json and sys.stdin.isatty():
            each = (
                f"version {r}" if version or "@" in r else f"{r} with all its versions"
                for r in refs
            )
            if not typer.confirm(f"Delete {', '.join(each)}?", err=True):
                raise typer.Exit(1)

        def one(ref: str) -> str:
            if version or "@" in ref:
                target = client.get(ref)
                client.delete_version(target.name, target.digest)
                return target.model
            client.delete(ref)
            return ref

        for_each(
            run, "ref", refs, one, lambda gone: {"deleted": gone}, lambda gone: f"{gone}  deleted"
        )


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
    to_stdout = run.out.takes_file(output)
    with run.client() as client, run.out.progress("downloading") as progress:
        if to_stdout:
            run.out.file(client.read(ref, progress=progress))
            return
        path = client.download(ref, output, progress=progress)
    count = path.stat().st_size
    run.out.data(
        {"ref": ref, "path": str(path), "bytes": count},
        lambda console: console.print(f"{path}  {ref}  ({size(count)})"),
    )


def pin(context: typer.Context, names: Names) -> None:
    """Keep masks resident in the workers."""
    _pin(context, names, True)


def unpin(context: typer.Context, names: Names) -> None:
    """Allow the workers to evict masks again."""
    _pin(context, names, False)


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


def _pin(context: typer.Context, names: list[str], pinned: bool) -> None:
    run = session(context)
    word = "pinned" if pinned else "unpinned"
    with run.client() as client:

        def one(name: str) -> str:
            (client.pin if pinned else client.unpin)(name)
            return name

        for_each(
            run,
            "name",
            names,
            one,
            lambda name: {"name": name, "pinned": pinned},
            lambda name: f"{name}  {word}",
        )


def _details(version: Version) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [
        ("model", Text(version.model, style="bold")),
        ("digest", version.digest),
        ("rev", str(version.rev)),
        ("aliases", ", ".join([*version.aliases, *splits(version)]) or "none"),
        ("created", f"{version.created} ({age(version.created)})"),
        ("zeros", f"{version.zeros:,} ({percent(version.sparsity)} of the gate weights)"),
        ("size", size(version.bytes)),
        ("sha256", version.file_digest),
        ("base", f"{version.base.model_id} ({short(version.base.fingerprint)})"),
        ("parent", short(version.parent) if version.parent else "none"),
        ("pinned", "yes" if version.pinned else "no"),
        ("expires", version.expires or "never"),
        *([("imported from", version.imported_from)] if version.imported_from else []),
    ]
    return rows
