"""Names and references, validated with the server's own grammar before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import bmt_core

from ._errors import Invalid, UsageError

T = TypeVar("T")


def mask_name(name: str) -> str:
    return _checked(bmt_core.validate_name, name)


def alias_name(alias: str) -> str:
    return _checked(bmt_core.validate_alias, alias)


def version_digest(digest: str) -> str:
    """Validate 12 to 64 hex digits of a mask digest; an ETag's quotes are removed."""
    digest = digest.strip('"')
    # The grammar allows prefixes only in a reference.
    _checked(bmt_core.MaskRef.parse, f"mask@{digest}")
    return digest


def mask_ref(ref: str) -> str:
    return str(_checked(bmt_core.MaskRef.parse, ref))


def is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{12,64}", text) is not None


def name_from_path(path: Path) -> str:
    """Turn a file's stem into a valid name: `Math v2 (1).bmt` -> `math-v2-1`.

    Raises UsageError if no valid character is left.
    """
    stem = path.name.removesuffix(".bmt")
    # A stem has no alias and no version, whatever characters it has.
    text = bmt_core.suggest_name(re.sub("[:@]", " ", stem))
    if not text:
        raise UsageError(f"no name can be made of the file name {path.name!r}; give one")
    return text


def _checked(check: Callable[[str], T], text: str) -> T:
    """Run a validator of `bmt_core`; raises Invalid instead of its errors."""
    if not isinstance(text, str):
        raise UsageError(f"expected a name or reference, got {type(text).__name__}")
    try:
        return check(text)
    except bmt_core.BmtError as error:
        raise Invalid(str(error), code=error.code, param="name") from error
