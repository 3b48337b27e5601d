"""Command group of `bmt-client`: global options anywhere, exit codes, and one document of JSON."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from bmt_client import BmtClientError, UsageError

from .output import Output
from .session import FAILURE, INTERRUPTED, Session, exit_code, hint

FLAGS = frozenset({"--json", "--allow-insecure"})
VALUES = frozenset({"--url", "--timeout", "--retries", "--ca-file"})
_TEXTS = frozenset({"-h", "--help", "--show-completion", "--install-completion"})
# Base class of all errors of a command line; each release of typer has it in another module.
_CommandLineError: Any = typer.BadParameter.__mro__[2]


class Group(TyperGroup):
    """Command group: global options anywhere on the line, and exit codes for errors.

    With `--json` each run prints one document on stdout, also for an error of the command line,
    for Ctrl-C and for a fault of this program.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoist(args))

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = list(super().get_params(ctx))
        for param in params:
            # Documented with the client; the help of commands has options of their own alone.
            if param.name in ("install_completion", "show_completion"):
                param.hidden = True
        return params

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BmtClientError as error:
            out = ctx.obj.out if isinstance(ctx.obj, Session) else ctx.obj
            (out if isinstance(out, Output) else Output()).error(error, hint(error))
            raise typer.Exit(exit_code(error)) from error
        except (KeyboardInterrupt, typer.Abort) as error:
            raise typer.Exit(INTERRUPTED) from error

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        front, rest = split(words)
        out = Output(as_json="--json" in front)
        text = io.StringIO() if out.as_json and _asks_for_text(rest) else None
        try:
            with nullcontext() if text is None else redirect_stdout(text):
                code = self._code(words, out, options)
            if text is not None and not out.documents:
                out.document({"data": {"text": text.getvalue()}})
            elif text is not None:
                print(text.getvalue(), end="")
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has enough, as `head` has. Python writes what is left when it ends.
            sys.stdout = io.StringIO()
            sys.exit(FAILURE)
        except OSError as error:
            out.error(BmtClientError(f"cannot write the output: {error.strerror or error}"), None)
            code = FAILURE
        except Exception as error:
            if out.as_json and not out.documents:
                out.document({"error": _fault(f"{type(error).__name__}: {error}", "internal")})
            raise
        if out.as_json and not out.documents:
            word = "interrupted" if code == INTERRUPTED else "aborted"
            out.document({"error": _fault(word, word)})
        sys.exit(code)

    def _code(self, words: list[str], out: Output, options: dict[str, Any]) -> int:
        """Run a command line; return its exit code."""
        found: Any = None
        try:
            found = super().main(words, **{**options, "standalone_mode": False, "obj": out})
        except _CommandLineError as error:
            message = error.format_message()
            if message.startswith("Usage:") and not out.as_json:
                # The help of a group without a command.
                error.show()
            else:
                message = "a command is missing" if message.startswith("Usage:") else message
                path = error.ctx.command_path if error.ctx is not None else "bmt-client"
                out.error(UsageError(message), f"see: {path} --help")
            return int(error.exit_code)
        except typer.Abort:
            return INTERRUPTED
        return found if isinstance(found, int) else 0


def hoist(args: Sequence[str]) -> list[str]:
    """Move global options to the front: `list --json` becomes `--json list`."""
    front, rest = split(args)
    return front + rest


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The global options of a command line, and all other words."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in FLAGS or ("=" in word and word.split("=")[0] in VALUES):
            front.append(word)
        elif word in VALUES:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return front, rest


def _asks_for_text(rest: Sequence[str]) -> bool:
    """True for --help, --version and completion, whose output is a text."""
    before_end = rest[: rest.index("--")] if "--" in rest else rest
    return bool(_TEXTS & set(before_end)) or list(rest[:1]) == ["--version"]


def _fault(message: str, code: str) -> dict[str, Any]:
    return {**BmtClientError(message, code=code).as_dict(), "hint": None}
