"""Command line options derived from the fields of `Settings`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from bmt_server.settings import Option, Settings, SettingsError, check, options


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `Settings` that has a flag.

    Its `**settings` receive the fields' values, in the fields' units and within their bounds; a
    value out of bounds ends the process with exit code 2.
    """
    own = [
        p
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [*own, *_parameters()]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        settings = {}
        for name, option, _ in _flagged():
            value, former = given.pop(name), given.pop(_former(name), None)
            settings[name] = option.from_flag(value if former is None else former)
        try:
            check(settings)
        except SettingsError as error:
            raise typer.BadParameter(str(error)) from None
        command(**given, **settings)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _flagged() -> Iterator[tuple[str, Option, Any]]:
    return (entry for entry in options() if entry[1].flag)


def _former(name: str) -> str:
    return f"former_{name}"


def _parameters() -> Iterator[inspect.Parameter]:
    only = inspect.Parameter.KEYWORD_ONLY
    for name, option, kind in _flagged():
        kind = float if option.flag_unit else kind
        default = option.to_flag(getattr(Settings, name))
        flag = Annotated[kind, typer.Option(option.flag, **_described(option, kind))]  # type: ignore[valid-type]
        yield inspect.Parameter(name, only, default=default, annotation=flag)
        if option.former_flag:
            hidden: Any = Annotated[kind | None, typer.Option(option.former_flag, hidden=True)]
            yield inspect.Parameter(_former(name), only, default=None, annotation=hidden)


def _described(option: Option, kind: Any) -> dict[str, Any]:
    """Help, bounds, unit and environment variable of an option, as Typer's arguments."""
    schema = option.flag_schema(kind)
    unit = option.flag_unit or option.unit
    return {
        "help": option.help,
        "min": schema.get("minimum"),
        "max": schema.get("maximum"),
        "envvar": option.env or None,
        **({"metavar": unit} if unit else {}),
    }
