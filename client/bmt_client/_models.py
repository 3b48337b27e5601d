"""What the server tells, as frozen dataclasses.

Unknown fields are dropped and missing ones take defaults, so a client works with a server that is
a version older or newer. Only what identifies a thing is required.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ._errors import ProtocolError


@dataclass(frozen=True, kw_only=True)
class Model:
    """Base of the models: built from the server's JSON, told back as JSON."""

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Raises ProtocolError where a required field is missing or `raw` is no object."""
        if not isinstance(raw, Mapping):
            raise ProtocolError(f"expected a JSON object for {cls.__name__}, got {raw!r:.80}")
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in raw.items() if key in known and value is not None}
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ProtocolError(
                f"the server's {cls.__name__} lacks a field or holds a wrong one ({error}); "
                f"it has {sorted(map(str, raw))}"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BaseModelInfo(Model):
    """The base model that a mask was trained on."""

    model_id: str = ""
    fingerprint: str = ""  # of the checkpoint's bytes, 64 hex digits


@dataclass(frozen=True, kw_only=True)
class Version(Model):
    """One immutable version of a mask."""

    name: str
    digest: str  # mask digest: base, shapes and positions; 64 hex digits
    rev: int = 0  # grows with each version of the name, even across a delete
    file_digest: str = ""  # SHA-256 of the stored file, 64 hex digits
    id: int = 0  # registry-wide, 1..2^31-1
    tenant: str = ""
    model: str = ""  # what to ask for in `model`, and what an answer says: name@digest12
    created: str = ""  # ISO 8601, UTC
    bytes: int = 0  # of the stored file
    zeros: int = 0  # deleted weights
    sparsity: float = 0.0  # zeros / gate weights of the base
    base: BaseModelInfo = field(default_factory=BaseModelInfo)
    aliases: tuple[str, ...] = ()
    parent: str | None = None  # mask digest that was current before
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Build from the server's JSON. Builds before 0.1.0 answer `density`."""
        if isinstance(raw, Mapping) and "density" in raw and "sparsity" not in raw:
            raw = {**raw, "sparsity": raw["density"]}
        return super().from_json(raw)

    def __post_init__(self) -> None:
        _require_text(self, "name", "digest")
        if not isinstance(self.base, BaseModelInfo):
            object.__setattr__(self, "base", BaseModelInfo.from_json(self.base))
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if not self.model:
            object.__setattr__(self, "model", f"{self.name}@{self.digest[:12]}")

    # The metadata dict would make the generated hash fail.
    def __hash__(self) -> int:
        return hash((self.name, self.digest, self.rev))


@dataclass(frozen=True, kw_only=True)
class Upload(Version):
    """The version that an upload ended in."""

    # created; moved: an older version is the latest again; unchanged: it was the latest already
    outcome: str = "created"

    @property
    def changed(self) -> bool:
        """Whether the name now points at another mask than before."""
        return self.outcome != "unchanged"

    __hash__ = Version.__hash__


@dataclass(frozen=True, kw_only=True)
class MaskInfo(Version):
    """A mask as a listing shows it: its latest version, and how many there are."""

    versions: int = 1

    __hash__ = Version.__hash__


@dataclass(frozen=True, kw_only=True)
class Alias(Model):
    """A movable name for a version: `name:alias`."""

    name: str
    alias: str
    digest: str  # mask digest that it points at now
    rev: int = 0

    def __post_init__(self) -> None:
        _require_text(self, "name", "alias", "digest")


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Model):
    """An entry of `/v1/models`: the base, a mask or an alias, under its public name."""

    id: str
    created: int = 0  # Unix time, seconds
    owned_by: str = ""
    root: str = ""
    parent: str | None = None  # the base model, for a mask
    max_model_len: int | None = None  # tokens

    def __post_init__(self) -> None:
        _require_text(self, "id")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing."""

    data: tuple[Any, ...]
    next: str | None = None  # `after` of the next page; None on the last

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], model: type[Model], cursor: str, limit: int) -> Page:
        """`cursor` names the field of the last entry that the next page starts after."""
        data = raw.get("data")
        if not isinstance(data, list):
            raise ProtocolError(f"a listing has no `data` list; it has {sorted(map(str, raw))}")
        entries = tuple(model.from_json(entry) for entry in data)
        # A server that does not say whether there is more is asked again after a full page.
        more = raw.get("has_more", len(entries) >= limit)
        after = raw.get("next") or (str(getattr(entries[-1], cursor)) if entries else None)
        return cls(entries, after if more and entries else None)


def _require_text(model: Model, *names: str) -> None:
    for name in names:
        value = getattr(model, name)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} is {value!r}")
