"""Grammar of mask names: `math`, `math:prod`, `math@3f9c1a2b4d5e`; shared by client and server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bmt_core.errors import InvalidName

MAX_NAME = 128
MIN_DIGEST_PREFIX = 12
LATEST = "latest"

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{12,64}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
# Longer texts are no names of anything; the mapping reads no more of them.
_MAX_FOREIGN = 1024


def _check(kind: str, text: str) -> str:
    if not isinstance(text, str) or len(text) > MAX_NAME or not _NAME.fullmatch(text):
        own = suggest_name(text) if isinstance(text, str) else None
        raise InvalidName(
            f"{kind} {str(text)[:80]!r} is not allowed: use a-z and 0-9, with single '.', '_' or "
            f"'-' between them, at most {MAX_NAME} characters" + (f"; use {own!r}" if own else ""),
            field=kind,
            value=text,
            bound=MAX_NAME,
        )
    return text


def suggest_name(text: str) -> str | None:
    """Name for a mask that is called `text` elsewhere: `Acme/Support__Bot` -> `acme.support-bot`.

    None if no letter or digit of the grammar is left, and for a reference such as `math:prod`,
    which has a name already. Deterministic. Organizations of the Hub have no '.', so names of two
    of them become one only if they differ in case or in separators.
    """
    text = text[:_MAX_FOREIGN].lower()
    name, _, rest = re.sub("@", ":", text, count=1).partition(":")
    if rest and _NAME.fullmatch(name) and (":" in text or _PREFIX.fullmatch(rest)):
        return None
    words = re.split(r"[^a-z0-9._-]+", text.replace("/", "."))
    # The grammar has single separators between letters or digits.
    name = re.sub(r"[._-]{2,}", "-", "-".join(word for word in words if word))
    return name[:MAX_NAME].strip("._-") or None


def validate_name(text: str) -> str:
    """Return the text if it is a valid mask name. Raises InvalidName."""
    return _check("name", text)


def validate_alias(text: str) -> str:
    """Return the text if it is a valid alias. Raises InvalidName."""
    return _check("alias", text)


def validate_digest(text: str) -> str:
    """Return the text if it is a digest: 64 lower-case hex digits. Raises InvalidName."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise InvalidName(
            f"digest {str(text)[:80]!r} is not allowed: it is 64 lower-case hexadecimal digits",
            field="digest",
            value=text,
            bound=64,
        )
    return text


@dataclass(frozen=True, slots=True)
class MaskRef:
    """Reference to a version of a mask: the latest, an alias, or a mask digest.

    At most one of `alias` and `digest_prefix` (12 to 64 hex digits) is set.
    """

    name: str
    alias: str | None = None
    digest_prefix: str | None = None

    @classmethod
    def parse(cls, text: str) -> MaskRef:
        """Parse `name`, `name:alias` or `name@hex`. Raises InvalidName."""
        if not isinstance(text, str):
            return cls(validate_name(text))
        name, at, prefix = text.partition("@")
        if at:
            if not _PREFIX.fullmatch(prefix):
                raise InvalidName(
                    f"version {prefix[:80]!r} in {text[:160]!r} is not allowed: it is "
                    f"{MIN_DIGEST_PREFIX} to 64 lower-case hexadecimal digits",
                    field="digest",
                    value=prefix,
                    bound=(MIN_DIGEST_PREFIX, 64),
                )
            return cls(validate_name(name), None, prefix)
        name, colon, alias = text.partition(":")
        return cls(validate_name(name), validate_alias(alias) if colon else None)

    def __str__(self) -> str:
        if self.digest_prefix:
            return f"{self.name}@{self.digest_prefix}"
        return f"{self.name}:{self.alias}" if self.alias else self.name
