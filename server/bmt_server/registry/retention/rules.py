"""Retention rules: the versions of a name that the servers remove by themselves.

A name's hash keeps its rule as "<keep_last>|<older_than>", each empty for no bound. Former builds
ignore it, and a rule in a form that this build does not know removes nothing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from bmt_server.errors import BadRequest
from bmt_server.registry.keys.expiry import parse_duration
from bmt_server.registry.names.versions import Entry, Versions

logger = logging.getLogger("vllm.bmt_server")

MOST_KEPT = 1_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """Versions beyond the newest `keep_last` go, and of those only what is `older_than`.

    older_than: a duration as in `30d`. A rule without bounds removes nothing. The latest version
    and those of aliases stay in any case.
    """

    keep_last: int | None = None
    older_than: str | None = None

    def __post_init__(self) -> None:
        """Raises BadRequest."""
        if self.keep_last is not None and not 1 <= self.keep_last <= MOST_KEPT:
            raise BadRequest(
                f"keep_last is {self.keep_last}; it must be 1 to {MOST_KEPT:,}", param="keep_last"
            )
        if self.older_than is not None:
            parse_duration(self.older_than, "older_than")

    @classmethod
    def read(cls, text: str) -> Rule:
        """The rule of a name's hash."""
        return _read(text)

    def __str__(self) -> str:
        return f"{'' if self.keep_last is None else self.keep_last}|{self.older_than or ''}"

    def describe(self) -> str:
        """The rule in words."""
        parts = [] if self.keep_last is None else [f"keep_last {self.keep_last}"]
        parts += [] if self.older_than is None else [f"older_than {self.older_than}"]
        return " and ".join(parts) or "keep all"

    def as_json(self) -> dict[str, Any]:
        return {"keep_last": self.keep_last, "older_than": self.older_than}

    @property
    def bounded(self) -> bool:
        """True if it may remove something."""
        return self.keep_last is not None or self.older_than is not None

    def due(self, versions: Versions, held: Container[str | None], now: float) -> Iterator[Entry]:
        """Versions that go, oldest first.

        held: digests of the latest version and of aliases. now: seconds since 1970.
        """
        if not self.bounded or len(versions) <= max(self.keep_last or 0, 1):
            return
        before = None
        if self.older_than is not None:
            before = now - parse_duration(self.older_than, "older_than")
        for entry in versions.beyond(self.keep_last or 0):
            if entry.digest not in held and (before is None or entry.created < before):
                yield entry


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> Rule:
    """The rule of a text; the log names an unknown one once, and not at each look at a name."""
    try:
        keep, older = text.split("|")
        return Rule(int(keep) if keep else None, older or None)
    except (ValueError, BadRequest):
        logger.warning("The retention rule %r is unknown to this build: it is not used.", text)
        return Rule()
