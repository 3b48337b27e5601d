"""The push of a trained mask to the Hugging Face Hub, checked before the run starts."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from bmt_client import BmtClientError, UsageError, hub

from bmt_trainer.errors import ConfigError, OutputError
from bmt_trainer.process import is_main_process


def check_place(place: str) -> None:
    """Raise ConfigError for a `push` that is no place of a mask on the Hub."""
    try:
        hub.parse_place(place)
    except UsageError as error:
        raise ConfigError(f"push: {error}") from None


def check(place: str | None) -> None:
    """Raise ConfigError if a push to `place` cannot succeed: no library, token or network wanted.

    The Hub is not asked. In the first process alone, which pushes.
    """
    if place is None or not is_main_process():
        return
    try:
        hub.require_push(hub.parse_place(place))
    except BmtClientError as error:
        raise ConfigError(f"push: {error}") from None


def push(output: Path, place: str | None, say: Callable[[str], None]) -> None:
    """Push the mask of `output`. Raises OutputError.

    The mask is written before, so that a push that fails loses nothing.
    """
    if place is None or not is_main_process():
        return
    try:
        pushed = hub.push(output, place, say=say)
    except BmtClientError as error:
        raise OutputError(
            f"{output} is written, but not pushed: {error}; push it with: "
            f"bmt-client push {shlex.quote(str(output))} {shlex.quote(place)}"
        ) from None
    say(f"pushed: {pushed.place}, {pushed.url}")
