"""Multipart forms of uploads: a few short fields, and one file that goes to the disk as it arrives.

On python-multipart's parser, because starlette's form keeps no bound on the file's size. Bounds on
everything else that a client chooses: parts, headers, names and values of fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bmt_server.errors import BadRequest, PayloadTooLarge, UnsupportedMedia

_MAX_PARTS = 16
_MAX_HEADERS, _MAX_HEADER_BYTES = 8, 2048
_MAX_NAME_BYTES, _MAX_VALUE_BYTES = 64, 1024
#: Bytes of a form apart from its file's.
OVERHEAD_BYTES = _MAX_PARTS * (
    _MAX_HEADERS * _MAX_HEADER_BYTES + _MAX_NAME_BYTES + _MAX_VALUE_BYTES
)

#: Error for a file of at least so many bytes, of so many allowed.
TooLarge = Callable[[int, int], PayloadTooLarge]


def too_large(size: int, max_bytes: int) -> PayloadTooLarge:
    """The error for a file of rows beyond the limit. size: at least."""
    return PayloadTooLarge(
        f"the file has {size} bytes or more, and {max_bytes} are allowed; split it, or ask the "
        "operator for a larger --max-file-mib",
        param="file",
    )


class FileForm:
    """A form of one file and short fields. file: takes the file's bytes, `max_bytes` at most.

    refuse: the error for a larger file. `write` is for a thread: it writes to the disk. Raises
    ApiError.
    """

    def __init__(
        self, content_type: str, file: BinaryIO, max_bytes: int, refuse: TooLarge = too_large
    ) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            shown = kind.decode("latin-1")[:64]
            raise UnsupportedMedia(
                f"content type is {shown!r}; send multipart/form-data with a boundary"
            )
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self._file, self._max_bytes, self._refuse = file, max_bytes, refuse
        self._parts, self._ended = 0, False
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._name: str | None = None  # of the field that is read; None in the file
        self._data = bytearray()
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda d, i, j: self._header.extend(d[i:j]),
                    "on_header_value": lambda d, i, j: self._value.extend(d[i:j]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._take,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
                max_header_count=_MAX_HEADERS,
                max_header_size=_MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _bad(str(error)) from None

    def write(self, data: bytes) -> None:
        """Parse a piece of the body, and write the file's part of it."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _bad(str(error)) from None

    def finish(self) -> None:
        """Check that the form is complete. Raises BadRequest."""
        if not self._ended:
            raise _bad("it ends before its last boundary")
        if self.filename is None:
            raise BadRequest("the form has no file; send it as `file`", param="file")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _bad(f"it has more than {_MAX_PARTS} parts")
        self._disposition, self._name = b"", None
        self._data.clear()

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _text(options.get(b"name", b""), "the name of a field")
        if not name or len(name) > _MAX_NAME_BYTES:
            raise _bad(f"a field's name has {len(name)} characters; 1 to {_MAX_NAME_BYTES} do")
        if b"filename" not in options:
            if name in self.fields or name == "file":
                raise BadRequest(f"{name} must be given once, and `file` as a file", param=name)
            self._name = name
            return
        if name != "file" or self.filename is not None:
            raise BadRequest(f"{name} is a file; send one file, as `file`", param=name)
        self.filename = _text(options[b"filename"], "the file's name")

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._data += data[start:end]
            if len(self._data) > _MAX_VALUE_BYTES:
                raise BadRequest(
                    f"{self._name} is longer than {_MAX_VALUE_BYTES} bytes", param=self._name
                )
            return
        self.size += end - start
        if self.size > self._max_bytes:
            raise self._refuse(self.size, self._max_bytes)
        self._file.write(data[start:end])

    def _end_part(self) -> None:
        if self._name is not None:
            self.fields[self._name] = _text(bytes(self._data), self._name)

    def _end(self) -> None:
        self._ended = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _bad(f"{what} is not UTF-8") from None


def _bad(why: str) -> BadRequest:
    return BadRequest(f"the form is not valid: {why[:200]}", code="bad_form")
