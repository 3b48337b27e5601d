"""Global options of a command, exit codes, hints and typed arguments."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from bmt_client import BmtClient, BmtClientError, Invalid
from bmt_client import _errors as errors
from bmt_client._names import alias_name, mask_name, mask_ref, version_digest

from .output import Output

OK, FAILURE, USAGE, AUTH, NOT_FOUND, CONFLICT, INVALID, UNAVAILABLE = range(8)
INTERRUPTED = 130

_EXIT_CODES: dict[type[BmtClientError], int] = {
    errors.UsageError: USAGE,
    errors.AuthenticationError: AUTH,
    errors.PermissionDenied: AUTH,
    errors.NotFound: NOT_FOUND,
    errors.Conflict: CONFLICT,
    errors.Invalid: INVALID,
    errors.TooLarge: INVALID,
    errors.RateLimited: UNAVAILABLE,
    errors.Unavailable: UNAVAILABLE,
}

_HINTS: dict[type[BmtClientError], str] = {
    errors.AuthenticationError: "set BMT_API_KEY, or store a key with: bmt-client login",
    errors.PermissionDenied: "ask the server's operator for a key with that scope",
    errors.NotFound: "list the masks with: bmt-client list",
    errors.Conflict: "another client changed it first; check `bmt-client show NAME` and try again",
    errors.RateLimited: "wait and try again",
}


@dataclass(frozen=True)
class Session:
    """Global options of one run, and the output."""

    url: str | None
    timeout: float | None
    retries: int
    allow_insecure: bool
    out: Output
    ca_file: str | None = None

    def client(self, url: str | None = None, api_key: str | None = None) -> BmtClient:
        """Client of the server of this run, or of another one with a key of its own."""
        _show_retries(self.out)
        return BmtClient(
            url or self.url,
            api_key,
            timeout=self.timeout,
            max_retries=self.retries,
            ca_file=self.ca_file,
            allow_insecure=self.allow_insecure,
        )


def session(context: typer.Context) -> Session:
    current = context.obj
    if not isinstance(current, Session):
        raise TypeError("the command does not run in the command group of bmt-client")
    return current


def exit_code(error: BmtClientError) -> int:
    return _EXIT_CODES.get(type(error), FAILURE)


def hint(error: BmtClientError) -> str | None:
    if error.code.startswith("hub_"):
        return None  # the message has the fix; the others are of a bmt-server
    if isinstance(error, errors.Unavailable) and error.code == "connection":
        return "start one with `bmt-server serve MODEL`, or point BMT_URL (--url) at a running one"
    if error.code == "base_mismatch":
        return "the mask was trained on other weights; see its base with: bmt-client inspect FILE"
    if error.code == "key_unknown":
        return "list the keys with: bmt-client keys list"
    if error.code == "limits_unknown":
        return "see the limits that are set with: bmt-client limits show"
    if error.code == "in_use":
        return "point the alias elsewhere or remove it with: bmt-client alias NAME ALIAS --delete"
    if error.code == "certificate":
        return "trust its authority's certificate by --ca-file FILE (BMT_CA_FILE)"
    if error.code == "not_a_bmt_server":
        return "set the address of a bmt-server by --url or BMT_URL"
    return _HINTS.get(type(error))


def stdin_text() -> str:
    """All text of stdin. Raises UsageError if it is not in the terminal's encoding."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise errors.UsageError(f"stdin is no text: {error}") from error


def _show_retries(out: Output) -> None:
    """Show the log records of retries as notes."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            out.note(record.getMessage())

    logger = logging.getLogger("bmt_client")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _argument(check: Callable[[str], str], metavar: str) -> Callable[[str], str]:
    """Make a typer parser that reports an invalid name as a usage error."""

    def parse(text: str) -> str:
        try:
            return check(text)
        except Invalid as error:
            raise typer.BadParameter(str(error)) from error

    parse.__name__ = metavar  # typer shows it as the type
    return parse


parse_name = _argument(mask_name, "NAME")
parse_ref = _argument(mask_ref, "REF")
parse_alias = _argument(alias_name, "ALIAS")
parse_digest = _argument(version_digest, "DIGEST")

Name = Annotated[str, typer.Argument(parser=parse_name, metavar="NAME", help="Name of a mask.")]
_REF_HELP = "math (its latest), math:prod (an alias) or math@3f9c0a1b2c3d (a digest)."

Names = Annotated[
    list[str], typer.Argument(parser=parse_name, metavar="NAME", help="Names of masks.")
]
Refs = Annotated[list[str], typer.Argument(parser=parse_ref, metavar="REF", help=_REF_HELP)]
Ref = Annotated[
    str,
    typer.Argument(
        parser=parse_ref,
        metavar="REF",
        help=_REF_HELP,
    ),
]
AliasName = Annotated[str, typer.Argument(parser=parse_alias, metavar="ALIAS", help="An alias.")]
