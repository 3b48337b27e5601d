"""Application of registry changes to loaded masks: deleted versions and pins."""

from __future__ import annotations

from bmt_server.api.masks.lifecycle import MaskLifecycle
from bmt_server.registry.schemas import NameState, Version


class RegistryChanges:
    """Keeps loaded versions consistent with the registry: retires deleted ones, follows pins."""

    def __init__(self, residency: MaskLifecycle) -> None:
        self._residency = residency
        # By tenant and name: the version that the name's pin keeps in memory.
        self._pins: dict[tuple[str, str], Version] = {}

    def apply(self, key: tuple[str, str], state: NameState | None) -> None:
        """Take over the new state of a (tenant, name); None if it has no version left."""
        self._residency.retire(key, state.versions.values() if state else ())
        wanted = state.resolve(None, None) if state is not None and state.pinned else None
        held = self._pins.get(key)
        if (held.id if held else None) == (wanted.id if wanted else None):
            return
        if held is not None:
            self._residency.unpin(held)
            del self._pins[key]
        if wanted is not None:
            self._residency.warm(wanted, pinned=True)
            self._pins[key] = wanted
