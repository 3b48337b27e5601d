"""Commands `status` and `whoami`: the server, the key, and the way between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from bmt_client import BmtClient, KeyInfo, NotFound
from bmt_client._config import Target, config_path
from bmt_client._connection.trust import proxy_variable, trust_source

from .output import print_pairs
from .session import UNAVAILABLE, session


def whoami(context: typer.Context) -> None:
    """Show the key in use: id, tenant, scopes and limits."""
    run = session(context)
    with run.client() as client:
        me = client.me()
        url = client.base_url
    rows = [
        ("server", url),
        ("key", me.key_id or "none"),
        ("tenant", me.tenant),
        ("scopes", ", ".join(sorted(me.scopes)) or "none"),
        ("base", ", ".join(me.base_names)),
        ("fingerprint", me.fingerprint),
        *([("precision", me.precision)] if me.precision else []),
        *((name, _limit(value)) for name, value in _limits(me).items()),
        *((f"limits of the {kind}", _budget(limits)) for kind, limits in me.budgets.items()),
        *([("stored", _stored(me))] if me.stored else []),
    ]
    run.out.data({"url": url, **_document(me)}, lambda console: print_pairs(console, rows))


def status(context: typer.Context) -> None:
    """Show the server in use, if it is ready, and the key, trust and proxy of requests to it.

    Exit code 7 if the server is not ready.
    """
    run = session(context)
    with run.client() as client:
        target = client._target
        me = _me(client)
        ready = client.ready()
    config = str(config_path())
    value: dict[str, Any] = {
        "url": target.url,
        "url_from": target.url_from,
        "ready": ready,
        "key_from": target.key_from,
        "key": None if me is None else _document(me),
        "trust": trust_source(target),
        "proxy": proxy_variable(target),
        "config": config,
    }
    rows = [
        ("server", f"{target.url}  (from {_source(target.url_from, '--url')})"),
        ("ready", "yes" if ready else "no"),
        ("key", _key_text(target, me)),
        ("base", ", ".join(me.base_names) if me else "unknown"),
        ("trust", trust_source(target)),
        ("proxy", proxy_variable(target) or "none"),
        ("config", config),
    ]
    run.out.data(value, lambda console: print_pairs(console, rows))
    if not ready:
        raise typer.Exit(UNAVAILABLE)


def _me(client: BmtClient) -> KeyInfo | None:
    try:
        return client.me()
    except NotFound as error:
        # A server of an earlier build.
        if error.code == "not_a_bmt_server":
            raise
        return None


def _document(me: KeyInfo) -> dict[str, Any]:
    return {**me.as_dict(), "scopes": sorted(me.scopes), "base_names": list(me.base_names)}


def _limits(me: KeyInfo) -> dict[str, float | None]:
    names = ("max_model_len", "max_n", "max_sparsity", "key_concurrency")
    return {name: getattr(me, name) for name in names}


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _budget(limits: object) -> str:
    """Limits over all servers; 0 is none."""
    given = limits.items() if isinstance(limits, Mapping) else ()
    return ", ".join(f"{name} {limit}" for name, limit in given if limit) or "none"


def _stored(me: KeyInfo) -> str:
    return ", ".join(f"{count} {what}" for what, count in me.stored.items())


def _key_text(target: Target, me: KeyInfo | None) -> str:
    if target.api_key is None:
        return "none"
    known = (
        f"{me.key_id} of {me.tenant}: {', '.join(sorted(me.scopes))}"
        if me
        else "set, and not shown by this server"
    )
    return f"{known}  (from {target.key_from})"


def _source(source: str, flag: str) -> str:
    return flag if source == "the call" else source
