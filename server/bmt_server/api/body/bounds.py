"""Bounds on a JSON body, checked on its bytes before anything is parsed.

A JSON text costs its parser, and the validation behind it, time by its bytes, its containers, its
keys and its values. All four are counted here by `bytes` methods, at 0.3 GB/s on one core, so that
a body beyond a bound costs its reading and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from bmt_server.errors import BadRequest, PayloadTooLarge

KIB = 1 << 10
#: Part of a body that is not its prompt: tools, schemas, settings.
FIXED_BYTES = 256 * KIB
#: Bytes of JSON for one token of a prompt. A token of text is 4 bytes on average; one that is
#: escaped character by character takes 6 bytes for each.
BYTES_PER_TOKEN = 16
#: Largest body of any context, so that copying and parsing stay below 0.1 s.
LARGEST_BYTES = 16 << 20
#: Objects and arrays. The dearest item for validation, a message of `/v1/responses`, takes 40 us.
MAX_CONTAINERS = 8192
MAX_KEYS = 32_768
#: Values besides token ids.
FIXED_VALUES = 32_768
LARGEST_VALUES = 1 << 20
MAX_DEPTH = 64

_STEP = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}
_NOT_BRACKETS = bytes(set(range(256)) - set(_STEP))


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """Largest body of one route: bytes, and values, of which token ids are most."""

    max_bytes: int
    max_values: int

    @classmethod
    def of_context(cls, max_model_len: int | None, prompts: int = 1) -> BodyBounds:
        """Bounds for `prompts` prompts of `max_model_len` tokens each; None: the largest."""
        if max_model_len is None:
            return cls(LARGEST_BYTES, LARGEST_VALUES)
        tokens = max_model_len * prompts
        return cls(
            min(FIXED_BYTES + BYTES_PER_TOKEN * tokens, LARGEST_BYTES),
            min(FIXED_VALUES + tokens, LARGEST_VALUES),
        )

    def check_size(self, size: int) -> None:
        """Raise PayloadTooLarge for a body of that many bytes."""
        if size > self.max_bytes:
            raise PayloadTooLarge(
                f"the body is larger than {self.max_bytes} bytes, the bound that follows from the "
                "model's context; send a shorter one"
            )

    def check_structure(self, data: bytes | bytearray) -> None:
        """Raise BadRequest if a JSON text, or the first part of one, exceeds a bound.

        What is no JSON may be counted as anything: the parser refuses it later.
        """
        # Escapes occur in strings only. Pairs of backslashes go first, so that a quote which
        # follows a backslash is an escaped one.
        text = bytes(data)
        if b"\\" in text:
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        quotes = text.count(b'"')
        if quotes > 2 * (MAX_KEYS + self.max_values):
            raise _beyond("strings", quotes // 2, MAX_KEYS + self.max_values)
        outside = b"".join(text.split(b'"')[::2])
        containers = outside.count(b"{") + outside.count(b"[")
        for what, found, most in (
            ("objects and arrays", containers, MAX_CONTAINERS),
            ("keys", outside.count(b":"), MAX_KEYS),
            ("values", outside.count(b",") + containers, self.max_values),
        ):
            if found > most:
                raise _beyond(what, found, most)
        brackets = outside.translate(None, _NOT_BRACKETS)
        if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_DEPTH:
            raise BadRequest(
                f"the body is nested more than {MAX_DEPTH} levels deep", code="body_too_complex"
            )


def _beyond(what: str, found: int, most: int) -> BadRequest:
    return BadRequest(
        f"the body has more than {most} {what} ({found} were read)", code="body_too_complex"
    )
