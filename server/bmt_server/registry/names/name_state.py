"""State of one name: its versions, its aliases, its latest version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bmt_server.registry.canary.split import Split, read_splits
from bmt_server.registry.names.versions import Entry, Versions
from bmt_server.registry.retention.rules import Rule
from bmt_server.registry.schemas import Version, iso_time

NO_TEXTS: Mapping[str, str] = MappingProxyType({})
_NO_SPLITS: Mapping[str, Split] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NameState:
    """Everything that the registry holds under one tenant's name.

    expires: the time from which it may be removed, seconds since 1970; None: it stays.
    retention: its rule as `Rule.read` takes it; None for the server's default.
    versions: shared by the states of a name over time, and always the newest. generation: counter
    of the registry's changes at the time of the read. unreadable: texts of versions by digest that
    this build cannot read, for the maintenance of the registry alone. splits: by alias, void ones
    too.
    """

    tenant: str
    name: str
    rev: int
    latest: str | None
    pinned: bool
    expires: int | None
    aliases: Mapping[str, str]
    versions: Versions
    generation: int
    retention: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=lambda: NO_TEXTS)
    splits: Mapping[str, Split] = field(default_factory=lambda: _NO_SPLITS)

    @classmethod
    def of_head(
        cls,
        tenant: str,
        name: str,
        head: Mapping[str, str],
        versions: Versions,
        generation: int,
        unreadable: Mapping[str, str] = NO_TEXTS,
    ) -> NameState:
        """State from the fields of the name's hash. Reuses the digests that `versions` holds."""

        def known(digest: str) -> str:
            entry = versions.entry(digest)
            return entry.digest if entry else digest

        aliases = {k[6:]: known(v) for k, v in head.items() if k.startswith("alias:")}
        return cls(
            tenant=tenant,
            name=name,
            rev=int(head.get("rev", 0)),
            latest=known(head["latest"]) if head.get("latest") else None,
            pinned=head.get("pinned") == "1",
            expires=int(head["expires"]) if "expires" in head else None,
            aliases=aliases or NO_TEXTS,
            versions=versions,
            generation=generation,
            retention=head.get("retention"),
            unreadable=unreadable,
            splits=read_splits(head) or _NO_SPLITS,
        )

    def rule(self, default: Rule) -> Rule:
        """Its retention rule. default: the server's."""
        return default if self.retention is None else Rule.read(self.retention)

    def due(self, rule: Rule, now: float) -> Iterator[Entry]:
        """Versions that a rule removes, oldest first. now: seconds since 1970."""
        held = {self.latest, *self.aliases.values()}
        for split in self.splits.values():
            held |= split.digests()
        return rule.due(self.versions, held, now)

    def split(self, alias: str | None) -> Split | None:
        """The split of an alias as it is in force; None if all requests get the main version."""
        split = self.splits.get(alias) if alias is not None else None
        if split is None or self.aliases.get(alias or "") != split.main:
            return None
        return split.of(self.versions)

    def void_splits(self) -> list[str]:
        """Aliases whose split is not, or not in all its parts, in force."""
        return [alias for alias, split in self.splits.items() if self.split(alias) != split]

    def same_head(self, other: NameState) -> bool:
        """True if all but the versions is equal."""
        fields = ("rev", "latest", "pinned", "expires", "aliases", "retention", "splits")
        return all(getattr(self, field) == getattr(other, field) for field in fields)

    def has_expired(self, now: float) -> bool:
        """True if the servers may remove it. now: seconds since 1970."""
        return self.expires is not None and self.expires <= now and not self.pinned

    def entry(self, alias: str | None, prefix: str | None = None) -> Entry | None:
        """Entry of a digest prefix or an alias, or the latest one; None if there is none."""
        if prefix is not None:
            return self.versions.of_prefix(prefix)
        digest = self.latest if alias in (None, "latest") else self.aliases.get(alias)
        return self.versions.entry(digest)

    def resolve(self, alias: str | None, prefix: str | None) -> Version | None:
        """Version of a digest prefix or an alias, or the latest one; None if there is none."""
        entry = self.entry(alias, prefix)
        return entry.version() if entry else None

    def newest(self) -> Version | None:
        """The latest version, or the one of the highest rev if there is no latest.

        None if the name has been deleted since this state was taken.
        """
        entry = self.entry(None) or next(iter(self.versions.page(1)), None)
        return entry.version() if entry is not None else None

    def response(self, version: Version, served_template: str = "") -> dict[str, Any]:
        """A version's JSON in responses. served_template: the server's chat template, as SHA-256.

        same_chat_template: false if chats are rendered by another template than in training.
        """
        aliases = sorted(a for a, d in self.aliases.items() if d == version.digest)
        if self.latest == version.digest:
            aliases.insert(0, "latest")
        return {
            **version.model_dump(exclude={"published_by"}),
            "model": version.model,
            "aliases": aliases,
            "canary_of": self._shares(version.digest, "canary"),
            "shadow_of": self._shares(version.digest, "shadow"),
            "pinned": self.pinned,
            "expires": None if self.expires is None else iso_time(self.expires),
            "retention": None if self.retention is None else Rule.read(self.retention).as_json(),
            "same_chat_template": version.same_template(served_template),
        }

    def _shares(self, digest: str, part: str) -> dict[str, float]:
        """Percent of an alias's requests that a version gets as `canary` or `shadow`, by alias."""
        found = {}
        for alias in sorted(self.splits):
            target = getattr(self.split(alias), part, None)
            if target is not None and target.digest == digest:
                found[alias] = target.percent
        return found
