"""Parts that the commands share: error lines and access to a registry."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from bmt_server.settings import SettingsError

RegistryUrl = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="BMT_REGISTRY",
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL. A running "
        "server prints the URL of its embedded registry.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
T = TypeVar("T")


def complete_url(url: str) -> str:
    """The registry's URL with BMT_REGISTRY_PASSWORD, if that is set; it leaves the environment.

    Secrets hold passwords as they are, often with a line's end, and a URL needs them
    percent-encoded. Raises SettingsError
    for text that is no registry's URL, and for a password without a URL.
    """
    password = os.environ.pop("BMT_REGISTRY_PASSWORD", "").rstrip("\r\n")
    if not password:
        return url
    if not url:
        raise SettingsError("BMT_REGISTRY_PASSWORD is set, but no --registry (BMT_REGISTRY)")
    from bmt_server.ipc.registry_address import with_password

    try:
        return with_password(url, password)
    except ValueError as error:
        raise SettingsError(f"--registry: {error}") from None


def say(text: str) -> None:
    """Print a line of progress to standard error."""
    print(f"bmt-server: {text}", file=sys.stderr, flush=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print an error and exit."""
    Console(stderr=True).print(f"[red]bmt-server:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def with_connection(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """Result of `work` on a `RegistryConnection`. An error of it or its blobs ends the process."""
    from bmt_server.errors import ApiError, BlobsDown, RegistryDown
    from bmt_server.registry.connection import RegistryConnection

    async def run() -> T:
        connection = RegistryConnection(complete_url(url))
        try:
            return await work(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(run())
    except (RegistryDown, BlobsDown) as error:
        fail(f"{error} ({error.detail})" if error.detail else str(error))
    except (ApiError, ValueError) as error:
        fail(str(error))
