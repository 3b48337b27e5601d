"""One action on several files or masks, with a line and an entry of JSON for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer
from rich.text import Text

from bmt_client import (
    AuthenticationError,
    BmtClientError,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    Unavailable,
)

from .session import Session, exit_code, hint

T = TypeVar("T")

# Errors of the server or the key: the next item would meet them too.
_OF_ALL = (AuthenticationError, PermissionDenied, ProtocolError, RateLimited, Unavailable)


def for_each(
    run: Session,
    field: str,
    items: Sequence[str],
    act: Callable[[str], T],
    document: Callable[[T], dict[str, Any]],
    line: Callable[[T], str | Text],
) -> None:
    """Run `act` on each item and print the results.

    One item: its document, or its error. Several: a list of documents with the item as `field`,
    and an error as `error`; items after an error of the server or the key are not tried. Ends
    with the exit code of the first error.
    """
    out = run.out
    if len(items) == 1:
        done = act(items[0])
        out.data(document(done), lambda console: out.line(line(done)))
        return
    entries: list[dict[str, Any]] = []
    first: BmtClientError | None = None
    try:
        for place, item in enumerate(items):
            try:
                done = act(item)
            except BmtClientError as error:
                first = first or error
                entries.append({field: item, "error": {**error.as_dict(), "hint": hint(error)}})
                out.failed(error, f"{item}: ", hint(error))
                if isinstance(error, _OF_ALL) or error.code == "not_a_bmt_server":
                    left = items[place + 1 :]
                    entries += [{field: one, "error": _not_tried()} for one in left]
                    if left:
                        out.failed(BmtClientError(f"not tried: {', '.join(left)}"), "", None)
                    break
            else:
                entries.append({field: item, **document(done)})
                if not out.as_json:
                    out.line(line(done))
    except KeyboardInterrupt:
        if out.as_json:
            interrupted = BmtClientError("interrupted", code="interrupted")
            out.document({"data": entries, "error": {**interrupted.as_dict(), "hint": None}})
        raise
    if out.as_json:
        failed = {} if first is None else {"error": {**first.as_dict(), "hint": hint(first)}}
        out.document({"data": entries, **failed})
    if first is not None:
        raise typer.Exit(exit_code(first))


def _not_tried() -> dict[str, Any]:
    return BmtClientError("not tried, because of the error before", code="not_tried").as_dict()
