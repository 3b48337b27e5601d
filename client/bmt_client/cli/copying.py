"""Command `copy`: masks of one server to another."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.text import Text

from bmt_client import Upload, UsageError
from bmt_client._config import profile_url
from bmt_client._connection.config_file import Content, config_path, load
from bmt_client._flows import verify_mask

from .many import for_each
from .session import Refs, parse_alias, parse_name, session
from .uploads import uploaded_line


def copy(
    context: typer.Context,
    refs: Refs,
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="The other server, or a profile of `login`.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            parser=parse_name,
            metavar="NAME",
            help="Name there. Default: as here.",
            show_default=False,
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(parser=parse_alias, metavar="ALIAS", help="Also point this alias at it."),
    ] = None,
    if_new: Annotated[
        bool, typer.Option("--if-new", help="Only if the name does not exist there yet.")
    ] = False,
) -> None:
    """Copy masks to another server, verified by both digests.

    A mask that is the latest there already changes nothing. The other server's key is that of
    `bmt-client login`, or BMT_TO_API_KEY.
    """
    run = session(context)
    if name is not None and len(refs) > 1:
        raise UsageError(f"--name is for one mask; there are {len(refs)}")
    file: Content = load(config_path())
    url = profile_url(to, file)
    # BMT_API_KEY belongs to the server that is read.
    key = os.environ.get("BMT_TO_API_KEY") or file.keys.get(url) or ""
    with run.client() as source, run.client(url, key) as target:
        if url == source.base_url and name is None:
            raise UsageError(f"{url} is the server that is read; give another one, or --name")

        def one(ref: str) -> Upload:
            version = source.get(ref)
            with run.out.progress(f"reading {ref}") as progress:
                # The digest keeps the version, if its alias moves meanwhile.
                data = source.read(f"{version.name}@{version.digest}", progress=progress)
            verify_mask(data, version.digest)
            with run.out.progress(f"writing {ref}") as progress:
                return target.upload(
                    data,
                    name or version.name,
                    alias=alias or (),
                    if_none_match=if_new,
                    progress=progress,
                )

        def document(version: Upload) -> dict[str, Any]:
            return {**version.as_dict(), "from": source.base_url, "to": url}

        def line(version: Upload) -> Text:
            return Text.assemble(uploaded_line(version), f"  to {url}")

        for_each(run, "ref", refs, one, document, line)
