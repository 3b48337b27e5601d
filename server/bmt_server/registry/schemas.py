"""Registry records: versions, the state of a name, and their JSON in responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bmt_server.ipc.mask_source import MaskSource
from bmt_server.settings import NO_TEMPLATE

DEFAULT_TENANT = "default"
DIGEST_SHOWN = 12
_TEMPLATE = "chat_template"  # key of a mask's metadata: SHA-256 of the template, or null


class BaseRef(BaseModel):
    """Base model of a mask."""

    model_id: str
    fingerprint: str


class Version(BaseModel):
    """One immutable version of a mask. digest: of the mask; file_digest: of the stored bytes.

    rev grows with every publish under a name, also across a delete. id is the adapter id in the
    engine, unique in the registry. bytes is the file's size.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    tenant: str = DEFAULT_TENANT
    digest: str
    file_digest: str
    rev: int = 0
    id: int = 0
    created: str
    bytes: int
    zeros: int
    sparsity: float  # zeros / gate weights of the base
    base: BaseRef
    parent: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def to_entry(self) -> str:
        """JSON kept in the registry; its scripts keep `rev`, `id` and `parent` next to it."""
        entry = self.model_dump(mode="json", exclude={"rev", "id", "parent"})
        # Builds before 0.1.0 require this former name of `sparsity`, and their replicas read the
        # same registry during a rolling update. To be removed in 0.2.0.
        return json.dumps({**entry, "density": self.sparsity}, ensure_ascii=False)

    @classmethod
    def from_entry(cls, text: str) -> Version:
        """Parse an entry; builds before 0.1.0 wrote `density` instead of `sparsity`."""
        entry = json.loads(text)
        if "density" in entry:
            entry.setdefault("sparsity", entry.pop("density"))
        return cls.model_validate(entry)

    @property
    def model(self) -> str:
        """Value of a request's `model` that selects exactly this version."""
        return f"{self.name}@{self.digest[:DIGEST_SHOWN]}"

    def same_template(self, served: str) -> bool | None:
        """True if the mask was trained with the chat template of a server, False if not.

        served: the server's `Settings.chat_template`. None if the mask's metadata or the server
        does not say.
        """
        if not served or _TEMPLATE not in self.metadata:
            return None
        return bool((self.metadata[_TEMPLATE] or NO_TEMPLATE) == served)

    @property
    def source(self) -> MaskSource:
        """Identity of the mask for workers."""
        return MaskSource(self.tenant, self.digest, self.file_digest)

    @property
    def internal_name(self) -> str:
        """Adapter name in vLLM, prefixed for all tenants but the default one to keep it unique."""
        return self.model if self.tenant == DEFAULT_TENANT else f"{self.tenant}/{self.model}"


@dataclass(frozen=True, slots=True)
class NameState:
    """Everything that the registry holds under one tenant's name.

    expires: the time from which it may be removed, seconds since 1970; None: it stays.
    """

    tenant: str
    name: str
    rev: int
    latest: str | None
    pinned: bool
    expires: int | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Version] = field(default_factory=dict)

    def resolve(self, alias: str | None, prefix: str | None) -> Version | None:
        """Version of a digest prefix or an alias, or the latest one; None if there is none."""
        if prefix is not None:
            matches = [v for d, v in self.versions.items() if d.startswith(prefix)]
            return matches[0] if len(matches) == 1 else None
        digest = self.latest if alias in (None, "latest") else self.aliases.get(alias)
        return self.versions.get(digest) if digest else None

    def has_expired(self, now: float) -> bool:
        """True if the servers may remove it. now: seconds since 1970."""
        return self.expires is not None and self.expires <= now and not self.pinned

    def newest_first(self) -> list[Version]:
        return sorted(self.versions.values(), key=lambda v: -v.rev)

    def response(self, version: Version, served_template: str = "") -> dict[str, Any]:
        """A version's JSON in responses. served_template: the server's chat template, as SHA-256.

        same_chat_template: false if chats are rendered by another template than in training.
        """
        aliases = sorted(a for a, d in self.aliases.items() if d == version.digest)
        if self.latest == version.digest:
            aliases.insert(0, "latest")
        return {
            **version.model_dump(),
            "model": version.model,
            "aliases": aliases,
            "pinned": self.pinned,
            "expires": None if self.expires is None else iso_time(self.expires),
            "same_chat_template": version.same_template(served_template),
        }


def iso_time(seconds: int) -> str:
    """Seconds since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class AliasTarget(BaseModel):
    """Body of `PUT …/aliases/{alias}`: a digest (at least 12 hex digits) or a rev."""

    model_config = ConfigDict(extra="forbid")

    digest: str | None = None
    rev: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Authenticated caller: the API key's id, tenant and scopes."""

    key_id: str
    tenant: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes
