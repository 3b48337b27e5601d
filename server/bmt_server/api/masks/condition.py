"""`If-Match` of a request: the version of a mask that must answer it, or be there to be changed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import bmt_core

from bmt_server.errors import BadRequest, Conflict
from bmt_server.registry.names.versions import Versions
from bmt_server.registry.schemas import Version

_MAX_CHARACTERS = 1024
_FULL = 64
# A weak tag is taken as the strong one: equal digests are equal masks.
_TAG = re.compile(r'(?:W/)?(?:"([^"]*)"|([^"\s,]+))')
_DIGEST = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Condition:
    """Versions of which one must be current; none for a request without a condition.

    wanted: (name or "", hex digits with which the mask digest begins) of each.
    """

    wanted: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, header: str | None) -> Condition:
        """Parse a header: digests (12 to 64 hex digits) or versions (`math@3f9c0a1b2c3d`).

        Tags may have quotes, and several are separated by commas. Raises BadRequest.
        """
        if header is None:
            return ANY_VERSION
        tags = [part.strip() for part in header[: _MAX_CHARACTERS + 1].split(",")]
        if len(header) > _MAX_CHARACTERS:
            raise _invalid(f"{len(header)} characters, and {_MAX_CHARACTERS} are allowed")
        return cls(tuple(_read_tag(tag) for tag in tags))

    def holds(self, version: Version | None) -> bool:
        """True without a condition, and for one of its versions. version: None for the base."""
        if not self.wanted:
            return True
        return version is not None and any(
            version.digest.startswith(digest)
            for _, digest in self.of_name(version.tenant, version.name).wanted
        )

    def of_name(self, tenant: str, name: str) -> Condition:
        """The versions that may be of a mask: those without a name, and those with its name."""
        names = ("", name, f"{tenant}/{name}")
        return Condition(tuple(one for one in self.wanted if one[0] in names))

    def check(self, version: Version | None, now: str) -> None:
        """Raise Conflict if the condition does not hold. now: how things are, for the message."""
        if not self.holds(version):
            raise Conflict(f"{now}, and If-Match asks for {self}")

    def digest_of(self, current: str | None, known: Versions) -> str | None:
        """The one mask digest that a script of the registry compares; None without a condition.

        current: the digest that is to be replaced, as far as this server knows. Raises Conflict if
        no version can be meant.
        """
        if not self.wanted:
            return None
        for _, digest in self.wanted:
            if current is not None and current.startswith(digest):
                return current
        # The registry decides: this server may not have heard of the last change.
        for _, digest in self.wanted:
            entry = known.of_prefix(digest)
            if entry is not None or len(digest) == _FULL:
                return entry.digest if entry is not None else digest
        raise Conflict(f"there is no version {self}. Read it again and retry")

    def __str__(self) -> str:
        return ", ".join(f"{name or '…'}@{digest[:12]}" for name, digest in self.wanted)


ANY_VERSION = Condition()


def _read_tag(tag: str) -> tuple[str, str]:
    match = _TAG.fullmatch(tag)
    text = (match[1] or match[2] or "") if match else ""
    name, at, digest = text.rpartition("@")
    try:
        if not _DIGEST.fullmatch(digest):
            raise _invalid(repr(tag[:100]))
        for part in name.split("/", 1) if at else ():  # with a tenant, as in answers
            bmt_core.validate_name(part)
        return name, digest
    except bmt_core.InvalidName:
        raise _invalid(repr(tag[:100])) from None


def _invalid(what: str) -> BadRequest:
    return BadRequest(
        f"If-Match is {what}; give a mask digest (12 to 64 hex digits) or a version, as in "
        '"math@3f9c0a1b2c3d"',
        code="digest_invalid",
        param="if-match",
    )
