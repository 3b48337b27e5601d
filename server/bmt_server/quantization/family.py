"""A family: a base checkpoint and the quantized ones that were made from it.

A mask has no values, so it fits every precision of its base. It names the base's fingerprint, and
the fingerprint of a quantized checkpoint says nothing of where it came from: a manifest does, which
`bmt-server family` writes after comparing the weights (`kinship.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bmt_core

from bmt_server.settings import SettingsError

_FORM, _VERSION = "bmt-family", 1
_MAX_BYTES, _MAX_MEMBERS = 1 << 20, 1000
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PRECISION = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class FamilyError(SettingsError):
    """A manifest cannot be read, or a checkpoint is not in it; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint of a family.

    model: as it was named; precision: of its gates, `bf16` or `int8`. Of a quantized one distance
    is the mean over the gates of |W - W'| / |W| (Frobenius), worst its largest, and column_scales
    says if W' is W with its columns scaled, as AWQ and SmoothQuant make it.
    """

    model: str
    fingerprint: str
    precision: str
    distance: float = 0.0
    worst: float = 0.0
    column_scales: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """The base, whose fingerprint masks name, and the checkpoints that were made from it."""

    base: Member
    members: tuple[Member, ...]

    def text(self) -> str:
        """The manifest, JSON."""
        document = {
            "format": _FORM,
            "version": _VERSION,
            "base": asdict(self.base),
            "members": [asdict(member) for member in self.members],
        }
        return json.dumps(document, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the manifest, replacing a file at once."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(self.text(), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: str | Path) -> Family:
        """Read a manifest. Raises FamilyError."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise FamilyError(f"--family {path} cannot be read ({error.strerror})") from None
        return cls.parse(data, f"--family {path}")

    @classmethod
    def parse(cls, data: bytes, where: str) -> Family:
        """Parse a manifest. Raises FamilyError, which names `where` it is."""
        if len(data) > _MAX_BYTES:
            raise FamilyError(f"{where} has more than {_MAX_BYTES:,} bytes")
        try:
            return _family(json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FamilyError(
                f"{where} is no manifest of version {_VERSION} ({error}); "
                "`bmt-server family` writes one"
            ) from None

    def joined(self, other: Family) -> Family:
        """This family with the other one's members, of the same base; this one's come first."""
        known = {member.fingerprint for member in self.members}
        more = [member for member in other.members if member.fingerprint not in known]
        return Family(self.base, (*self.members, *more)[:_MAX_MEMBERS])

    def includes(self, fingerprint: str) -> bool:
        """True for the base and for each member."""
        return any(fingerprint == m.fingerprint for m in (self.base, *self.members))


def _family(document: Any) -> Family:
    if not isinstance(document, dict) or document.get("format") != _FORM:
        raise ValueError(f"its format is not {_FORM}")
    if document.get("version") != _VERSION:
        raise ValueError(f"its version is {str(document.get('version'))[:20]}")
    members = document["members"]
    if not isinstance(members, list) or len(members) > _MAX_MEMBERS:
        raise ValueError(f"members is not a list of at most {_MAX_MEMBERS}")
    return Family(_member(document["base"]), tuple(_member(member) for member in members))


def _member(raw: Any) -> Member:
    member = Member(**raw)
    texts = ((member.fingerprint, _FINGERPRINT), (member.precision, _PRECISION))
    if not isinstance(member.model, str) or not all(
        isinstance(text, str) and form.fullmatch(text) for text, form in texts
    ):
        raise ValueError(f"{str(raw)[:80]} is no member")
    return member


@dataclass(frozen=True, slots=True)
class Identity:
    """Fingerprints of a served checkpoint: base, the one that masks name, and its own."""

    base: str
    own: str


def identify(
    folder: str,
    precision: str,
    *,
    quantized: bool,
    family: str,
    kept: Callable[[str], Family | None] | None = None,
    fingerprint: Callable[[str], str] = bmt_core.fingerprint,
) -> Identity:
    """The fingerprints of a checkpoint that is served.

    precision, quantized: of its gates; family: path of a manifest, empty for none; kept: looks up
    that of a quantized checkpoint, by its fingerprint, without a path; fingerprint: of a folder.
    Raises FamilyError for a quantized checkpoint without a family, and for one that is not in its
    family.
    """
    if not family:
        own = fingerprint(folder)
        if not quantized:
            return Identity(own, own)
        if kept is not None and (found := kept(own)) is not None:
            return Identity(found.base.fingerprint, own)
        raise FamilyError(
            f"{folder} is quantized ({precision}), and masks name the checkpoint that it was made "
            f"from; write down that it is the same base with `bmt-server family BASE {folder} "
            "--out family.json`, and serve it with --family family.json, or keep the manifest in "
            "the registry with `bmt-server family … --registry URL`"
        )
    known, own = Family.read(family), fingerprint(folder)
    if not known.includes(own):
        names = ", ".join(m.model for m in (known.base, *known.members)[:5])
        raise FamilyError(
            f"{folder} has the fingerprint {own[:12]}…, and --family {family} has none of it, but "
            f"{names}; add it with `bmt-server family`, or name the checkpoint that was compared"
        )
    return Identity(known.base.fingerprint, own)
