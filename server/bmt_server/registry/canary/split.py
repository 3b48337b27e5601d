"""Split of an alias: a canary that answers a share of its requests, and a shadow that gets copies.

Kept with the alias in the name's hash, so that servers of versions before splits go on to serve
the alias's own version, and their scripts of retention keep the versions that a split names::

    alias:<alias>    mask digest of the main version
    split:<alias>    "<main digest>|<canary's share>|<shadow's share>", in points
    canary:<alias>   mask digest of the canary, if there is one
    shadow:<alias>   mask digest of the shadow, if there is one

A split names the main version that it was made for: it is void as soon as the alias is another one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from bmt_server.errors import BadRequest

logger = logging.getLogger("vllm.bmt_server")

#: Parts of a whole: a share has two decimals of a percent.
POINTS = 10_000
_SPLIT, _CANARY, _SHADOW = "split:", "canary:", "shadow:"
#: Beginnings of the fields that hold a version's digest.
POINTERS = (_CANARY, _SHADOW)


@dataclass(frozen=True, slots=True)
class Target:
    """A version, and its share of the requests in points. digest: of the mask."""

    digest: str
    points: int

    @property
    def percent(self) -> float:
        return self.points / 100


@dataclass(frozen=True, slots=True)
class Split:
    """Split of one alias. main: digest of the version that the alias has while it is in force."""

    main: str
    canary: Target | None = None
    shadow: Target | None = None

    @property
    def text(self) -> str:
        """Value of the field `split:<alias>`."""
        shares = (str(t.points) if t is not None else "" for t in (self.canary, self.shadow))
        return "|".join((self.main, *shares))

    def of(self, versions: Container[str]) -> Split | None:
        """The split without versions that are gone; None if nothing is left."""
        kept = [t if t and t.digest in versions else None for t in (self.canary, self.shadow)]
        return replace(self, canary=kept[0], shadow=kept[1]) if any(kept) else None

    def digests(self) -> set[str]:
        """Mask digests of canary and shadow."""
        return {t.digest for t in (self.canary, self.shadow) if t is not None}


def read_splits(head: Mapping[str, str]) -> dict[str, Split]:
    """Splits by alias, void ones too. head: fields of a name's hash.

    What a later build added to a split is left out; a split without a readable share is none.
    """
    found = {}
    for field, text in head.items():
        if not field.startswith(_SPLIT):
            continue
        alias = field.removeprefix(_SPLIT)
        main, *shares = text.split("|")
        targets = []
        for prefix, share in zip(POINTERS, [*shares, "", ""], strict=False):
            digest = head.get(prefix + alias, "")
            known = share.isascii() and share.isdigit() and int(share) <= POINTS
            if digest and not known:
                logger.error(
                    "The share of %s%s is %r, which this build cannot read; its requests get the "
                    "main version.",
                    prefix,
                    alias,
                    share[:20],
                )
            targets.append(Target(digest, int(share)) if digest and known else None)
        found[alias] = Split(main, *targets)
    return found


def points_of(percent: float, field: str) -> int:
    """A share in points. Raises BadRequest unless it is 0 to 100 with at most two decimals."""
    points = Decimal(repr(percent)) * 100
    if not 0 <= points <= POINTS or points != points.to_integral_value():
        raise BadRequest(
            f"`{field}` is {percent!r}; allowed: 0 to 100, with at most two decimals",
            code="field_out_of_bounds",
            param=field,
        )
    return int(points)


def drawn(points: int, *parts: str) -> bool:
    """True for that share of all texts, equal for equal ones, on every server.

    Monotone: what a share draws, every larger one draws too. parts: of the text; their borders
    count.
    """
    text = b"".join(b"%d:%s" % (len(raw), raw) for raw in (p.encode() for p in parts))
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    return (number * POINTS) >> 64 < points
