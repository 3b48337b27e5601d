"""Names and references, checked by the server's own grammar before anything is sent."""

from __future__ import annotations

import re
from pathlib import Path

import bmt_core

from ._errors import Invalid, UsageError

MAX_NAME_CHARS = 128


def mask_name(name: str) -> str:
    return _checked(bmt_core.validate_name, name)


def alias_name(alias: str) -> str:
    return _checked(bmt_core.validate_alias, alias)


def version_digest(digest: str) -> str:
    """12 to 64 hex digits of a mask digest, quotes of an ETag allowed."""
    digest = digest.strip('"')
    # The grammar has prefixes only within a reference.
    _checked(bmt_core.MaskRef.parse, f"mask@{digest}")
    return digest


def mask_ref(ref: str) -> str:
    return str(_checked(bmt_core.MaskRef.parse, ref))


def is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{12,64}", text) is not None


def name_from_path(path: Path) -> str:
    """The file's stem brought into the grammar: `Math v2 (1).bmt` -> `math-v2-1`.

    Raises UsageError where nothing is left of it.
    """
    stem = path.name.removesuffix(".bmt").lower()
    words = re.split(r"[^a-z0-9._-]+", stem)
    # The grammar wants single separators between letters or digits.
    text = re.sub(r"[._-]{2,}", "-", "-".join(word for word in words if word))
    text = text[:MAX_NAME_CHARS].strip("._-")
    if not text:
        raise UsageError(f"no name can be made of the file name {path.name!r}; give one")
    return text


def _checked(check, text):  # type: ignore[no-untyped-def]
    if not isinstance(text, str):
        raise UsageError(f"expected a name or reference, got {type(text).__name__}")
    try:
        found = check(text)
    except bmt_core.BmtError as error:
        raise Invalid(str(error), code=error.code, param="name") from error
    return text if found is None else found
