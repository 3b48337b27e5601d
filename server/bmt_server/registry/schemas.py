"""Registry records: versions, callers, and bodies of requests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bmt_server.ipc.mask_source import MaskSource
from bmt_server.settings import NO_TEMPLATE

DEFAULT_TENANT = "default"
DIGEST_SHOWN = 12
MAX_ADDRESS = 64
_TEMPLATE = "chat_template"  # key of a mask's metadata: SHA-256 of the template, or null


class BaseRef(BaseModel):
    """Base model of a mask."""

    model_id: str
    fingerprint: str


class Publisher(BaseModel):
    """The key that published a version first, its name, and the client's address."""

    key_id: str
    key_name: str = ""
    address: str = ""


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
    published_by: Publisher | None = None  # for administrators alone
    imported_from: str | None = None  # the source, of a version that a server imported

    def to_entry(self) -> str:
        """JSON kept in the registry; its scripts keep `rev`, `id` and `parent` next to it."""
        entry = self.model_dump(mode="json", exclude={"rev", "id", "parent"})
        for name in ("published_by", "imported_from"):
            if entry[name] is None:
                del entry[name]
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


def iso_time(seconds: int) -> str:
    """Seconds since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class AliasTarget(BaseModel):
    """Body of `PUT …/aliases/{alias}`: a digest (at least 12 hex digits) or a rev."""

    model_config = ConfigDict(extra="forbid")

    digest: str | None = None
    rev: int | None = None


class SplitTarget(AliasTarget):
    """Version of a split, and the percent of the alias's requests that it gets."""

    percent: float = Field(strict=True, allow_inf_nan=False)


class AliasBody(AliasTarget):
    """The same with the alias's canary and shadow; without them, it has none."""

    canary: SplitTarget | None = None
    shadow: SplitTarget | None = None


class Promotion(BaseModel):
    """Body of `POST …/promote`. canary: digest that the canary must have; null for any."""

    model_config = ConfigDict(extra="forbid")

    canary: str | None = None


class RetentionRule(BaseModel):
    """Body of `PUT …/retention`; null for no bound, and without both all versions stay."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keep_last: int | None = None
    older_than: str | None = Field(default=None, max_length=16)


@dataclass(frozen=True, slots=True)
class Principal:
    """Authenticated caller: the API key's id, tenant, scopes, name (its label) and expiry."""

    key_id: str
    tenant: str
    scopes: frozenset[str]
    key_name: str = ""
    expires: str | None = None  # ISO 8601, UTC

    def may(self, scope: str) -> bool:
        """True if the key has the scope; `admin` includes all but `operator`, which has all."""
        if scope in self.scopes or "operator" in self.scopes:
            return True
        return "admin" in self.scopes and scope != "operator"
