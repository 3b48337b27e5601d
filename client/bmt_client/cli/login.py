"""The command that stores a key."""

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

    It goes into the config file, readable by this user only, and is sent to that server only.
    """
    run = session(context)
    # Only the address is wanted here; an insecure one is refused below, with the key.
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
            pass  # a key that may only upload is a good key
        except Unavailable as error:
            run.out.note(f"stored without a check: {error.message}")
    path = store(url, key)
    run.out.data(
        {"url": url, "path": str(path)}, lambda console: console.print(f"key for {url} in {path}")
    )
