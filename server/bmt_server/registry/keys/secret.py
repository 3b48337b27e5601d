"""Secrets of API keys: made here, shown once, stored as hashes.

A key has the form `bmt_adm_<32 characters><6 characters of checksum>`. The 32 characters carry 190
random bits. With the checksum, the server refuses a mistyped key without a look-up, and secret
scanners recognize keys without false positives.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib

from bmt_server.registry.keys.record import SCOPES

_KIND = {
    **{"metrics": "met", "priority": "inf", "infer": "inf", "upload": "upl", "promote": "upl"},
    **{"train": "upl", "admin": "adm", "operator": "adm"},
}
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECK = 32, 6


def make_key(scopes: tuple[str, ...]) -> str:
    """Create a secret; its prefix names the widest scope."""
    # Scopes of later versions, of a key that is rotated, have no prefix here.
    widest = max((scope for scope in scopes if scope in SCOPES), key=SCOPES.index)
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    head = f"bmt_{_KIND[widest]}_{body}"
    return head + _checksum(head)


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECK):
        number, rest = divmod(number, 62)
        digits += _ALPHABET[rest]
    return digits


def well_formed(key: str) -> bool:
    """Check form and checksum, before any look-up."""
    return (
        len(key) == 8 + _RANDOM + _CHECK
        and key.isascii()
        and key.startswith("bmt_")
        and _checksum(key[:-_CHECK]) == key[-_CHECK:]
    )


def hash_key(key: str) -> str:
    """Field of a key in the registry: SHA-256, 64 hex digits."""
    # 190 random bits cannot be guessed, so a fast hash is enough.
    return hashlib.sha256(key.encode()).hexdigest()
