"""Commands `login` and `logout`: store an API key, and remove it."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from bmt_client import BmtClient, KeyInfo, NotFound, PermissionDenied
from bmt_client._config import checked_key, checked_profile, resolve
from bmt_client._connection.config_file import change, config_path, load

from .session import Session, session, stdin_text


def login(
    context: typer.Context,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also name the address; --url, BMT_URL and `copy --to` take the name.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Ask the server if the key is valid.")
    ] = True,
    forget: Annotated[bool, typer.Option("--forget", help="The same as `logout`.")] = False,
) -> None:
    """Store an API key for a server, which becomes the default.

    The key is kept in the config file, readable by this user only, and sent to that server only.
    A damaged config file is mended; a copy of it is kept.
    """
    run = session(context)
    if profile is not None:
        checked_profile(profile)
    # This resolves the address alone; an insecure one is refused below, with the key.
    url = resolve(run.url, "", run.timeout, without_file=True).url
    if forget:
        _forget(run, url)
        return
    if sys.stdin.isatty():
        key = typer.prompt(f"API key for {url}", hide_input=True, err=True)
    else:
        key = stdin_text().partition("\n")[0]
    key = checked_key(key)
    resolve(url, key, run.timeout, allow_insecure=run.allow_insecure, without_file=True)
    me = _asked(run, url, key) if check else None
    path, backup = change(url, key=key, profile=profile)
    if backup:
        run.out.note(f"the config file was damaged; it is kept as {backup}")
    value = {
        "url": url,
        "path": str(path),
        "profile": profile,
        "checked": check,
        "key_id": me.key_id if me else None,
        "tenant": me.tenant if me else None,
        "scopes": sorted(me.scopes) if me else None,
        "backup": str(backup) if backup else None,
    }
    facts = f"  ({', '.join(sorted(me.scopes))} of {me.tenant})" if me else ""
    run.out.data(value, lambda console: run.out.line(f"key for {url} in {path}{facts}"))


def logout(
    context: typer.Context,
    everywhere: Annotated[
        bool, typer.Option("--all", help="Remove the stored keys of all servers.")
    ] = False,
) -> None:
    """Remove the stored key of a server."""
    run = session(context)
    _forget(run, None if everywhere else resolve(run.url, "", run.timeout).url)


def _forget(run: Session, url: str | None) -> None:
    # A damaged file is mended by `login` alone.
    keys = load(config_path()).keys
    removed = sorted(keys) if url is None else [url] if url in keys else []
    path, _ = change(url, drop_keys=True)
    value = {"url": url, "path": str(path), "removed": removed}
    text = f"no key for {url or 'any server'}" + ("" if removed else "; there was none")
    run.out.data(value, lambda console: run.out.line(text))


def _asked(run: Session, url: str, key: str) -> KeyInfo | None:
    """The server's description of the key; None from a server of an earlier build."""
    with BmtClient(
        url,
        key,
        timeout=run.timeout,
        max_retries=min(run.retries, 1),
        ca_file=run.ca_file,
        allow_insecure=run.allow_insecure,
    ) as client:
        try:
            return client.me()
        except NotFound as error:
            if error.code == "not_a_bmt_server":
                raise
        # A key whose scopes do not include the list of models is valid.
        with contextlib.suppress(PermissionDenied):
            client.models()
        return None
