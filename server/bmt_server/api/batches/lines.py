"""Lines of a batch's input file: where each one is, and whether it is a request of the batch.

::

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …}}

All lines are checked before the first one runs; an error names its line. What is in a body is
checked when it runs, as that of any request, and is an error of that line alone. Functions of this
module are for threads: a file may have half a gigabyte.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from bmt_server.api.body.bounds import LARGEST_BYTES, BodyBounds
from bmt_server.errors import ApiError, BadRequest, PayloadTooLarge
from bmt_server.registry.batches.record import MAX_ERRORS, BatchError

MAX_LINES = 50_000
MAX_ID_CHARACTERS = 512
#: Bytes and values of a line apart from its body's.
_AROUND_BYTES, _AROUND_VALUES = 8 << 10, 8
_LARGEST_BYTES = LARGEST_BYTES + _AROUND_BYTES
# Lines that are looked at, empty ones too, before a file has too many.
_MOST_NUMBERS = 2 * MAX_LINES
_FIELDS = {"custom_id", "method", "url", "body"}


class Lines:
    """A file's lines that have anything on them. at, sizes: bytes; numbers: of the file, from 1.

    is_whole: False if the file has more lines than are looked at, empty ones too.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.at, self.sizes, self.numbers = array("Q"), array("Q"), array("L")
        self.is_whole = True

    @classmethod
    def read(cls, file: BinaryIO) -> Lines:
        """Look for the lines of a whole file.

        The first part of a line counts as the line if it is too long for a request to any server: a
        line that one server of a base has found valid may be longer than another one's bound.
        """
        lines, at, number = cls(file), 0, 0
        file.seek(0)
        whole = True
        while number <= _MOST_NUMBERS and (piece := file.readline(_LARGEST_BYTES + 1)):
            if whole:
                number += 1
                if piece.strip():
                    lines.at.append(at)
                    lines.sizes.append(len(piece))
                    lines.numbers.append(number)
            at += len(piece)
            whole = piece.endswith(b"\n")
        lines.is_whole = number <= _MOST_NUMBERS
        return lines

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> bytes:
        # Threads read at the same time, each at a place of its own.
        return os.pread(self._file.fileno(), self.sizes[index], self.at[index])

    def custom_id(self, index: int) -> str:
        """The id of a line of a file that is valid."""
        return str(msgspec.json.decode(self[index])["custom_id"])

    def request(self, index: int) -> tuple[str, dict[str, Any]]:
        """custom_id and body of a line of a file that is valid."""
        found = msgspec.json.decode(self[index])
        return str(found["custom_id"]), found["body"]


class _Wrong(Exception):
    """An error of one line. args: code, message, field."""


@dataclass(frozen=True)
class LineCheck:
    """Checks of a batch's line. needs_model: without one no model answers."""

    endpoint: str
    bounds: BodyBounds
    needs_model: bool

    @property
    def max_bytes(self) -> int:
        """Largest line."""
        return self.bounds.max_bytes + _AROUND_BYTES

    def errors(self, lines: Lines) -> list[BatchError]:
        """Errors of a file, none if it is valid, and the first ones if there are many."""
        if not len(lines) and lines.is_whole:
            return [BatchError(code="empty_file", message="the file has no lines")]
        if len(lines) > MAX_LINES or not lines.is_whole:
            said = f"the file has more than the {MAX_LINES} lines that are allowed; split it"
            if len(lines) <= MAX_LINES:
                said = (
                    f"the file has more than {_MOST_NUMBERS} lines, empty ones among them; "
                    "remove those"
                )
            return [BatchError(code="too_many_lines", message=said)]
        found: list[BatchError] = []
        seen: dict[str, int] = {}
        for error in self._errors(lines, seen):
            found.append(error)
            if len(found) == MAX_ERRORS:
                break
        return found

    def _errors(self, lines: Lines, seen: dict[str, int]) -> Iterator[BatchError]:
        for index, number in enumerate(lines.numbers):
            try:
                custom_id = self._checked(lines[index])
                if custom_id in seen:
                    raise _Wrong(
                        "duplicate_custom_id",
                        f"custom_id {custom_id[:64]!r} is that of line {seen[custom_id]} too",
                        "custom_id",
                    )
                seen[custom_id] = number
            except _Wrong as wrong:
                code, message, param = wrong.args
                yield BatchError(code=code, message=message[:1000], param=param, line=number)

    def _checked(self, line: bytes) -> str:
        """The custom_id of a line that is valid. Raises _Wrong."""
        request = self._parsed(line)
        for name in ("custom_id", "method", "url", "body"):
            if request.get(name) is None:
                raise _Wrong("missing_required_parameter", f"{name} is missing", name)
        if extra := sorted(request.keys() - _FIELDS):
            raise _Wrong("unknown_parameter", f"{extra[0][:64]} is unknown", extra[0][:64])
        custom_id, body = request["custom_id"], request["body"]
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID_CHARACTERS:
            said = f"custom_id must be a text of 1 to {MAX_ID_CHARACTERS} characters"
            raise _Wrong("invalid_custom_id", said, "custom_id")
        if request["method"] != "POST":
            said = f"method is {str(request['method'])[:32]!r}; requests of batches are POST"
            raise _Wrong("invalid_method", said, "method")
        if request["url"] != self.endpoint:
            said = f"url is {str(request['url'])[:64]!r}, and the batch's endpoint {self.endpoint}"
            raise _Wrong("invalid_url", said, "url")
        if not isinstance(body, dict):
            raise _Wrong("invalid_body", "body must be an object", "body")
        if self.needs_model and not isinstance(body.get("model"), str):
            said = "body.model must name a mask, or the base model"
            raise _Wrong("missing_required_parameter", said, "body.model")
        if body.get("stream"):
            raise _Wrong("invalid_body", "body.stream has no use in a batch", "body.stream")
        return custom_id

    def _parsed(self, line: bytes) -> dict[str, Any]:
        if len(line) > self.max_bytes:
            said = f"the line is longer than {self.max_bytes} bytes"
            raise _Wrong("line_too_long", said, None)
        wider = BodyBounds(self.max_bytes, self.bounds.max_values + _AROUND_VALUES)
        try:
            wider.check_structure(line)
            request = msgspec.json.decode(line)
        except (BadRequest, PayloadTooLarge) as error:
            raise _Wrong("invalid_json_line", _text(error), None) from None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            said = f"this line is not JSON: {str(error)[:200]}"
            raise _Wrong("invalid_json_line", said, None) from None
        if not isinstance(request, dict):
            raise _Wrong("invalid_json_line", "this line is no JSON object", None)
        return request


def _text(error: ApiError) -> str:
    return str(error).replace("the body", "this line")
