"""Records of API keys in the registry, without secrets, and their scopes.

Servers of former versions read the same records, and know neither the scope `promote` nor further
fields: with them `upload` moves aliases too. So the stored words keep their former meaning::

    scopes of a key      stored
    upload, promote      upload     as in keys that former versions made
    upload               publish    refused by former versions, which would move aliases by it
    promote              promote    refused by former versions
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import bmt_core

from bmt_server.registry.keys.expiry import has_expired, read_expiry

#: Scopes of a key, from the narrowest. `metrics` reads /metrics and nothing of masks, `priority`
#: lets requests overtake those of others, `train` is a worker's of fine-tuning jobs, `promote`
#: moves aliases, `admin` has all of them within its tenant, and `operator` manages the keys of all
#: tenants too.
SCOPES = ("metrics", "priority", "infer", "train", "upload", "promote", "admin", "operator")
_UPLOAD_ALONE = "publish"
_REVOKED_AT = "1970-01-01T00:00:00+00:00"
_FIELDS = ("key_id", "tenant", "scopes", "label", "created", "expires")

KeyStatus = Literal["active", "expired", "unreadable"]


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key's record in the registry, without the secret. Times are ISO 8601, in UTC."""

    key_id: str
    tenant: str
    scopes: tuple[str, ...]
    label: str
    created: str
    expires: str | None = None

    def to_json(self) -> str:
        """JSON stored in the registry; former versions read no other fields."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps({**fields, "scopes": _to_stored(self.scopes)})

    @property
    def revoked(self) -> bool:
        """True for the record that a revoked key of the environment leaves behind."""
        return not self.scopes and self.expires == _REVOKED_AT

    @property
    def fault(self) -> str:
        """The reason for which no server accepts the key, other than its time; empty if none."""
        if not self.created:
            return "its record cannot be read"
        if self.expires is not None and read_expiry(self.expires) is None:
            return f"its expiry {self.expires[:64]!r} is no time with a zone"
        if not _is_name(self.tenant):
            return f"its tenant {self.tenant[:64]!r} is not a valid name"
        return ""

    @property
    def status(self) -> KeyStatus:
        """`active`, or the state in which all servers refuse the key."""
        if self.fault:
            return "unreadable"
        return "expired" if self.expires is not None and has_expired(self.expires) else "active"

    def revocation(self) -> KeyRecord:
        """The record of this key once it is revoked, which former versions take for expired."""
        return replace(self, scopes=(), expires=_REVOKED_AT)


def read_record(digest: str, value: bytes) -> KeyRecord:
    """Parse a record. One that cannot be read has no scopes, and a `fault`.

    digest: the key's hash, 64 hex digits. Fields of later versions are left out.
    """
    try:
        raw: dict[str, Any] = json.loads(value)
        fields: dict[str, Any] = {name: raw.get(name) for name in _FIELDS}
        scopes = tuple(fields.pop("scopes") or ())
        texts = [*scopes, *(fields[name] for name in ("key_id", "tenant", "label", "created"))]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        if fields["expires"] is not None:
            fields["expires"] = str(fields["expires"])
        return KeyRecord(**fields, scopes=_from_stored(scopes))
    except (ValueError, TypeError, AttributeError):
        return KeyRecord(f"damaged-{digest[:8]}", "", (), "", "", None)


def _to_stored(scopes: tuple[str, ...]) -> list[str]:
    words = [scope for scope in scopes if scope not in ("upload", "promote")]
    if {"upload", "promote"} <= set(scopes):
        words.append("upload")
    elif "upload" in scopes:
        words.append(_UPLOAD_ALONE)
    elif "promote" in scopes:
        words.append("promote")
    return words


def _from_stored(words: tuple[str, ...]) -> tuple[str, ...]:
    scopes = set(words) - {_UPLOAD_ALONE}
    if "upload" in words:
        scopes.add("promote")
    elif _UPLOAD_ALONE in words:
        scopes.add("upload")
    known = [scope for scope in SCOPES if scope in scopes]
    return (*known, *sorted(scopes - set(SCOPES)))


def _is_name(text: str) -> bool:
    try:
        bmt_core.validate_name(text)
    except bmt_core.InvalidName:
        return False
    return True
