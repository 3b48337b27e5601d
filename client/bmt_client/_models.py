"""Objects in the server's answers, as frozen dataclasses.

Unknown fields are dropped and missing ones take defaults, so a client works with an older or newer
server. Only the fields that identify an object are required.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from ._errors import ProtocolError


@dataclass(frozen=True, kw_only=True)
class Model:
    """Base class of the models, converted from and to JSON objects."""

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Build from the server's JSON. Raises ProtocolError if a required field is missing."""
        if not isinstance(raw, Mapping):
            raise ProtocolError(f"expected a JSON object for {cls.__name__}, got {raw!r:.80}")
        known = _annotations(cls)
        values = {key: value for key, value in raw.items() if key in known and value is not None}
        try:
            for name, value in values.items():
                _require_type(name, value, known[name])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ProtocolError(
                f"the server's {cls.__name__} lacks a field or has an invalid one ({error}); "
                f"its fields are {sorted(map(str, raw))}"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _annotations(type(self))}
        return {n: v.as_dict() if isinstance(v, Model) else v for n, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class BaseModelInfo(Model):
    """Base model of a mask."""

    model_id: str = ""
    fingerprint: str = ""  # of the checkpoint's bytes, 64 hex digits


@dataclass(frozen=True, kw_only=True)
class Version(Model):
    """One immutable version of a mask."""

    name: str
    digest: str  # mask digest: base, shapes and positions; 64 hex digits
    rev: int = 0  # increases with each version of the name, also after a delete
    file_digest: str = ""  # SHA-256 of the stored file, 64 hex digits
    id: int = 0  # unique in the registry, 1 to 2^31 - 1
    tenant: str = ""
    model: str = ""  # value of `model` in requests and answers: name@digest12
    created: str = ""  # ISO 8601, UTC
    bytes: int = 0  # of the stored file
    zeros: int = 0  # gate weights that the mask sets to zero
    sparsity: float = 0.0  # zeros / gate weights of the base
    base: BaseModelInfo = field(default_factory=BaseModelInfo)
    aliases: tuple[str, ...] = ()
    canary_of: Mapping[str, Any] = field(default_factory=dict)  # alias -> percent of its requests
    shadow_of: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None  # mask digest of the latest version before this one
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False
    expires: str | None = None  # ISO 8601: the server removes the whole name after it
    imported_from: str | None = None  # the source, of a version that the server itself read
    # False: the server renders chats by another template than the mask's training; None: unknown.
    same_chat_template: bool | None = None

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Build from the server's JSON; servers before 0.1.0 call the sparsity `density`."""
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

    # The generated hash would fail on the metadata dict.
    def __hash__(self) -> int:
        return hash((self.name, self.digest, self.rev))


@dataclass(frozen=True, kw_only=True)
class Upload(Version):
    """Version that an upload resulted in."""

    # created; moved: an older version is the latest again; unchanged: was the latest already
    outcome: str = "created"

    @property
    def changed(self) -> bool:
        """True if the name points at another mask than before."""
        return self.outcome != "unchanged"

    __hash__ = Version.__hash__


@dataclass(frozen=True, kw_only=True)
class MaskInfo(Version):
    """Entry of a listing: the latest version of a mask and the number of versions."""

    versions: int = 1

    __hash__ = Version.__hash__


@dataclass(frozen=True, kw_only=True)
class Alias(Model):
    """Movable name of a version: `name:alias`, with a canary and a shadow if it has them."""

    name: str
    alias: str
    digest: str  # mask digest of its version
    rev: int = 0
    canary: str | None = None  # mask digest of the version that answers a share of the requests
    percent: float | None = None  # that share
    shadow: str | None = None  # mask digest of the version that gets copies of a share
    shadow_percent: float | None = None

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Build from the server's JSON, whose canary and shadow are objects of their own."""
        if isinstance(raw, Mapping):
            flat = dict(raw)
            for part, share in (("canary", "percent"), ("shadow", "shadow_percent")):
                given = raw.get(part)
                if isinstance(given, Mapping):
                    flat[part], flat[share] = given.get("digest"), given.get("percent")
            raw = flat
        return super().from_json(raw)

    def __post_init__(self) -> None:
        _require_text(self, "name", "alias", "digest")


@dataclass(frozen=True, kw_only=True)
class Retention(Model):
    """Versions of a name that the server removes by itself.

    Versions beyond the newest `keep_last` go, and of those only what is `older_than`; without
    either, all stay.
    """

    name: str
    keep_last: int | None = None
    older_than: str | None = None  # such as `30d`
    source: str  # name: the name's own rule; server: the server's default
    due: int = 0  # versions that go next

    def __post_init__(self) -> None:
        _require_text(self, "name", "source")


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Model):
    """Entry of `/v1/models`: the base, a mask or an alias."""

    id: str
    created: int = 0  # Unix time, seconds
    owned_by: str = ""
    root: str = ""
    parent: str | None = None  # the base model, for a mask
    max_model_len: int | None = None  # tokens

    def __post_init__(self) -> None:
        _require_text(self, "id")


_OF_KEY = ("key_id", "tenant", "scopes", "budgets", "stored")


@dataclass(frozen=True, kw_only=True)
class KeyInfo(Model):
    """The client's key, the served base and the limits that apply.

    Limits that the server does not state are None, and so are numbers without a limit.
    """

    key_id: str = ""
    tenant: str = ""
    scopes: frozenset[str]
    base_names: tuple[str, ...] = ()
    fingerprint: str = ""  # of the checkpoint that masks name, 64 hex digits
    precision: str = ""  # of the served gates, as bf16 or int8
    quantized: bool = False  # the served checkpoint was made from the one that masks name
    max_model_len: int | None = None  # tokens
    max_n: int | None = None  # completions of a request
    max_sparsity: float | None = None  # share of the gate weights that a mask may set to zero
    key_concurrency: int | None = None  # requests at a time
    # Limits of the key and its tenant over all servers, by `key` and `tenant`; 0: none.
    budgets: Mapping[str, Any] = field(default_factory=dict, hash=False)
    # Versions and bytes of the tenant.
    stored: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Build from the server's JSON, whose base and limits are objects of their own."""
        if not isinstance(raw, Mapping):
            return super().from_json(raw)
        parts = {name: raw.get(name) for name in ("base", "limits")}
        base, limits = (part if isinstance(part, Mapping) else {} for part in parts.values())
        return super().from_json(
            {
                **{name: raw.get(name) for name in _OF_KEY},
                "base_names": base.get("names"),
                **{name: base.get(name) for name in ("fingerprint", "precision", "quantized")},
                **{name: limit for name, limit in limits.items() if limit},
            }
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "scopes", frozenset(self.scopes))
        object.__setattr__(self, "base_names", tuple(self.base_names))

    def may(self, scope: str) -> bool:
        """True if the key has `scope`; `admin` includes all but `operator`, which has all."""
        if scope in self.scopes or "operator" in self.scopes:
            return True
        return "admin" in self.scopes and scope != "operator"


@dataclass(frozen=True, slots=True)
class Page:
    """Page of a listing."""

    data: tuple[Any, ...]
    next: str | None = None  # `after` of the next page; None on the last

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], model: type[Model], cursor: str, limit: int) -> Page:
        """Parse a page. `cursor`: field of the last entry after which the next page starts."""
        data = raw.get("data")
        if not isinstance(data, list):
            raise ProtocolError(
                f"the listing has no `data` list; its fields are {sorted(map(str, raw))}"
            )
        entries = tuple(model.from_json(entry) for entry in data)
        # Without `has_more`, a full page means that another one may follow.
        more = raw.get("has_more", len(entries) >= limit)
        after = raw.get("next") or (str(getattr(entries[-1], cursor)) if entries else None)
        return cls(entries, after if more and entries else None)


# Types of the fields of JSON, by their annotation without `| None`; others are checked where
# they are converted. A bool is an int in Python, and 1.0 is a number of JSON as 1 is.
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "tuple[str, ...]": (list, tuple),
    "frozenset[str]": (list, tuple, frozenset),
    "Mapping[str, Any]": (Mapping,),
}


def _annotations(model: type[Model]) -> Mapping[str, str]:
    """Annotations of a model's fields by name."""
    return {f.name: str(f.type) for f in fields(model)}


def _require_type(name: str, value: object, annotation: str) -> None:
    allowed = _TYPES.get(annotation.removesuffix(" | None"))
    if allowed is None:
        return
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise TypeError(f"{name} is {value!r:.80}, not {annotation}")
    if "str, " in annotation or "[str]" in annotation:
        for text in value:  # type: ignore[attr-defined]
            if not isinstance(text, str):
                raise TypeError(f"{name} has {text!r:.80}, not a text")


def _require_text(model: Model, *names: str) -> None:
    for name in names:
        value = getattr(model, name)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} is {value!r}")
