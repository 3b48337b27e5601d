"""Names of all tenants in memory, sorted by name, with an index of their files.

No call but `put` of a whole name depends on the number of names or versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sortedcontainers import SortedDict

from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.reader import NameRead
from bmt_server.registry.names.versions import Entry, Versions

Key = tuple[str, str]  # tenant and name


class _Tenant:
    """Names of one tenant, and the number of versions of each file digest.

    versions, bytes: of all names, and of the different files.
    """

    __slots__ = ("bytes", "files", "names", "versions")

    def __init__(self) -> None:
        self.names: SortedDict = SortedDict()  # name -> NameState
        self.files: dict[bytes, int] = {}
        self.versions = 0
        self.bytes = 0

    def add(self, entry: Entry) -> None:
        before = self.files.get(entry.file_digest, 0)
        self.files[entry.file_digest] = before + 1
        self.versions += 1
        if not before:
            self.bytes += entry.size

    def discard(self, entry: Entry) -> None:
        left = self.files[entry.file_digest] - 1
        self.versions -= 1
        if left:
            self.files[entry.file_digest] = left
        else:
            del self.files[entry.file_digest]
            self.bytes -= entry.size


class Catalog:
    """The states of all names that have versions."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._expiring: set[Key] = set()

    def __len__(self) -> int:
        return sum(len(tenant.names) for tenant in self._tenants.values())

    def keys(self) -> Iterator[Key]:
        return ((t, name) for t, tenant in self._tenants.items() for name in tenant.names)

    def get(self, tenant: str, name: str) -> NameState | None:
        """State of a name; None if it has no version."""
        names = self._tenants.get(tenant)
        state: NameState | None = names.names.get(name) if names is not None else None
        return state

    def expiring(self) -> list[NameState]:
        """States of the names that have an expiry."""
        return [state for key in self._expiring if (state := self.get(*key)) is not None]

    def page(self, tenant: str, after: str, limit: int) -> list[NameState]:
        """States of at most `limit` names of a tenant that follow `after`, sorted by name."""
        names = self._tenants.get(tenant)
        if names is None:
            return []
        following = names.names.irange(minimum=after, inclusive=(False, True))
        return [names.names[name] for name in islice(following, limit)]

    def pages(self, size: int) -> Iterator[list[NameState]]:
        """States of all names, at most `size` at a time, which may change between two of them."""
        for tenant in list(self._tenants):
            after = ""
            while states := self.page(tenant, after, size):
                yield states
                after = states[-1].name

    def page_before(self, tenant: str, before: str, limit: int) -> list[NameState]:
        """States of the last `limit` names of a tenant before `before`, sorted by name."""
        names = self._tenants.get(tenant)
        if names is None:
            return []
        earlier = names.names.irange(maximum=before, inclusive=(True, False), reverse=True)
        return [names.names[name] for name in islice(earlier, limit)][::-1]

    def has_file(self, tenant: str, digest: str) -> bool:
        """True if a version of the tenant has this file. digest: SHA-256, 64 hex digits."""
        names = self._tenants.get(tenant)
        return names is not None and bytes.fromhex(digest) in names.files

    def stored(self, tenant: str) -> tuple[int, int]:
        """Versions of a tenant, and bytes of their different files."""
        names = self._tenants.get(tenant)
        return (names.versions, names.bytes) if names is not None else (0, 0)

    def any_has_file(self, digest: bytes) -> bool:
        """True if a version of any tenant has this file. digest: SHA-256, 32 bytes."""
        return any(digest in names.files for names in self._tenants.values())

    def apply(self, read: NameRead) -> bool:
        """Take over what was read of a name. True if that changed anything."""
        tenant = self._tenants.get(read.tenant) or self._tenants.setdefault(read.tenant, _Tenant())
        old: NameState | None = tenant.names.get(read.name)
        versions = old.versions if old is not None else Versions()
        changed = self._apply_entries(tenant, versions, read)
        if not versions:
            tenant.names.pop(read.name, None)
            self._expiring.discard((read.tenant, read.name))
            return changed
        state = NameState.of_head(read.tenant, read.name, read.head, versions, read.generation)
        tenant.names[read.name] = state
        if state.expires is None:
            self._expiring.discard((read.tenant, read.name))
        else:
            self._expiring.add((read.tenant, read.name))
        return changed or old is None or not old.same_head(state)

    @staticmethod
    def _apply_entries(tenant: _Tenant, versions: Versions, read: NameRead) -> bool:
        changed = False
        gone = [d for d, entry in read.entries.items() if entry is None and d in versions]
        if read.whole:
            gone += [digest for digest in versions if digest not in read.entries]
        for entry in read.entries.values():
            if entry is None or versions.entry(entry.digest) is entry:
                continue
            replaced = versions.put(entry)
            tenant.add(entry)
            if replaced is not None:
                tenant.discard(replaced)
            changed = True
        for digest in gone:
            dropped = versions.drop(digest)
            if dropped is not None:
                tenant.discard(dropped)
                changed = True
        return changed
