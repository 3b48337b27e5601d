"""Application of registry changes to loaded masks: deletions and pins."""

from __future__ import annotations

from bmt_server.api.masks.lifecycle import MaskLifecycle
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.versions import Versions
from bmt_server.registry.schemas import Version


class RegistryChanges:
    """Keeps loaded versions consistent with the registry: retires deleted ones, follows pins."""

    def __init__(self, lifecycle: MaskLifecycle, fingerprint: str) -> None:
        """fingerprint: of the served base; pins of masks of others are for their servers."""
        self._lifecycle = lifecycle
        self._fingerprint = fingerprint
        self._pinned: dict[tuple[str, str], Version] = {}  # tenant and name -> version in memory

    def apply(self, key: tuple[str, str], state: NameState | None) -> None:
        """Apply the new state of a (tenant, name); None if it has no version left."""
        self._lifecycle.retire_missing(key, state.versions if state else Versions())
        wanted = state.resolve(None, None) if state is not None and state.pinned else None
        if wanted is not None and wanted.base.fingerprint != self._fingerprint:
            wanted = None
        pinned = self._pinned.get(key)
        if (pinned.id if pinned else None) == (wanted.id if wanted else None):
            return
        if pinned is not None:
            self._lifecycle.unpin(pinned)
            del self._pinned[key]
        if wanted is not None:
            self._lifecycle.preload(wanted, pinned=True)
            self._pinned[key] = wanted
