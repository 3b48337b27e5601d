"""Command `login`: store an API key."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bmt_client import BmtClient, PermissionDenied, Unavailable
from bmt_client._config import resolve, store

from .session import session


def login(
    context: typer.Context,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the stored key of the server.")
    ] = False,
) -> None:
    """Store an API key for a server.

    The key is kept in the config file, readable by this user only, and sent to that server only.
    """
    run = session(context)
    # This resolves the address alone; an insecure one is refused below, with the key.
    url = resolve(run.url, "", run.timeout).url
    if forget:
        path = store(url, None)
        run.out.data({"url": url, "path": str(path)}, lambda c: c.print(f"no key for {url}"))
        return
    if sys.stdin.isatty():
        key = typer.prompt(f"API key for {url}", hide_input=True, err=True)
    else:
        key = sys.stdin.readline()
    with BmtClient(
        url, key, timeout=run.timeout, max_retries=0, allow_insecure=run.allow_insecure
    ) as client:
        try:
            client.models()
        except PermissionDenied:
            pass  # the key is valid; its scope does not include listing models
        except Unavailable as error:
            run.out.note(f"stored without a check: {error.message}")
    path = store(url, key)
    run.out.data(
        {"url": url, "path": str(path)}, lambda console: console.print(f"key for {url} in {path}")
    )
