"""Choice of the version that answers a request of an alias, equal on every server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bmt_server.registry.canary.split import Split, drawn
from bmt_server.registry.schemas import DEFAULT_TENANT, Version

Role = Literal["main", "canary", "shadow"]
SESSION_HEADER = "x-session-id"  # vLLM's own name for it


@dataclass(frozen=True, slots=True)
class Arm:
    """One version under an alias that is split, as figures name it. version: `math@3f9c…`."""

    alias: str
    version: str
    role: Role

    @classmethod
    def of(cls, version: Version, alias: str, role: Role) -> Arm:
        """The arm of a version. Names have the tenant before them, as internal names have."""
        tenant = "" if version.tenant == DEFAULT_TENANT else f"{version.tenant}/"
        return cls(f"{tenant}{version.name}:{alias}", version.internal_name, role)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy of a request for the shadow of its alias."""

    version: Version
    arm: Arm


@dataclass(frozen=True, slots=True)
class Draw:
    """Drawing of one request: by whom it is sticky, and its own id, which decides on copies.

    sticky: kind and value, such as ("user", "alice").
    """

    sticky: tuple[str, str]
    request_id: str

    @classmethod
    def of_request(
        cls, body: Mapping[str, Any], headers: Mapping[str, str], request_id: str
    ) -> Draw:
        """The first of these that a request has: user, session, its own id.

        A user is `safety_identifier`, `user`, or Anthropic's `metadata.user_id`; a session is the
        header `X-Session-ID`. `prompt_cache_key` is none of them: it often names a prompt that all
        users have.
        """
        metadata = body.get("metadata")
        users = (
            *(body.get("safety_identifier"), body.get("user")),
            metadata.get("user_id") if isinstance(metadata, dict) else None,
        )
        for user in users:
            if isinstance(user, str) and user:
                return cls(("user", user), request_id)
        session = headers.get(SESSION_HEADER, "")
        return cls(("session", session) if session else ("request", request_id), request_id)

    def takes_canary(self, split: Split, tenant: str, name: str, alias: str) -> bool:
        """True if the canary answers.

        The canary's digest takes part: another canary meets other users first, and one whose share
        grows keeps those that it has.
        """
        canary = split.canary
        if canary is None:
            return False
        return drawn(canary.points, tenant, name, alias, canary.digest, *self.sticky)

    def takes_shadow(self, split: Split) -> bool:
        """True if a copy of the request goes to the shadow."""
        return split.shadow is not None and drawn(split.shadow.points, "shadow", self.request_id)
