"""Messages of data rows, by the parser that servers check files with; its errors are DataError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bmt_core import RowError
from bmt_core.fine_tuning import messages
from bmt_core.fine_tuning.messages import ROLES, Chat, shown

from bmt_trainer.errors import DataError

__all__ = ["ROLES", "Chat", "encodable", "parse", "shown", "text", "tools"]


def parse(value: Any, where: str, *, conversations: bool = False, speakers: bool = False) -> Chat:
    """The chat of a list of messages, as `bmt_core.fine_tuning.messages.parse` reads it."""
    with _data_errors():
        return messages.parse(value, where, conversations=conversations, speakers=speakers)


def text(value: Any, where: str) -> str:
    """`value`, which must be text that can be encoded. Raises DataError."""
    with _data_errors():
        return messages.text(value, where)


def tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Tools of a row, in OpenAI's form, from a list or its JSON text. Raises DataError."""
    with _data_errors():
        return messages.tools(value, where)


def encodable(value: Any, where: str) -> Any:
    """`value`, whose JSON must be text that can be encoded. Raises DataError."""
    with _data_errors():
        return messages.encodable(value, where)


@contextmanager
def _data_errors() -> Iterator[None]:
    try:
        yield
    except RowError as error:
        raise DataError(str(error)) from None
