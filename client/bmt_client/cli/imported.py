"""Names of masks from elsewhere, such as `Acme/Support-Bot` on the Hub."""

from __future__ import annotations

import re

import bmt_core

from bmt_client import Invalid, UsageError
from bmt_client._names import mask_name

from .output import Output

# Characters of names on the Hub; a name with others is a typing error rather than a mask's own.
_HUB = re.compile(r"[A-Za-z0-9._/-]+", re.ASCII)


def imported_name(out: Output, name: str | None) -> str | None:
    """`name` if it is valid, else the name that it becomes here, with a note.

    Raises UsageError if no name can be made of it.
    """
    if name is None:
        return None
    try:
        return mask_name(name)
    except Invalid as error:
        own = bmt_core.suggest_name(name) if _HUB.fullmatch(name) else None
        if own is None:
            raise UsageError(str(error), code=error.code, param="name") from error
    out.note(f"{name} is uploaded as {own}: names have a-z, 0-9 and single '.', '_' or '-'")
    return own
