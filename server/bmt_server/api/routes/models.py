"""OpenAI's list of models: the base, and a tenant's masks under all their names.

With thousands of masks the list is a megabyte of JSON, and building it anew would hold the event
loop, and with it every stream, for as long as some steps take. Each name's part is kept as bytes
until the name changes.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from bmt_server.api.engine import Engine
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import NameState, Version


class Models:
    """The cards of one server's models."""

    def __init__(self, snapshot: RegistryReplica, engine: Engine) -> None:
        self._snapshot = snapshot
        self._engine = engine
        self._started = int(time.time())
        self._parts: dict[tuple[str, str], tuple[NameState, bytes]] = {}
        self._prune_at = 100

    def listing(self, tenant: str) -> bytes:
        """The JSON of `GET /v1/models`, sorted by name, the base first."""
        states = self._snapshot.of_tenant(tenant)
        if len(self._parts) > self._prune_at:
            self._parts = {k: p for k, p in self._parts.items() if self._snapshot.get(*k) is p[0]}
            self._prune_at = 2 * len(self._parts) + 100
        parts = [self.base_card(name) for name in self._engine.base_names]
        cards = [json.dumps(card).encode() for card in parts]
        cards += [part for state in states if (part := self._part(state))]
        return b'{"object":"list","data":[' + b",".join(cards) + b"]}"

    def base_card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "bmt",
            "root": self._engine.model_path,
            "parent": None,
            "max_model_len": self._engine.max_model_len,
        }

    def card(self, name: str, version: Version) -> dict[str, Any]:
        """One name of a mask."""
        return {
            **self.base_card(name),
            "created": int(datetime.fromisoformat(version.created).timestamp()),
            "root": version.model,
            "parent": self._engine.base_names[0],
        }

    def _part(self, state: NameState) -> bytes:
        """The cards of all names under which a mask is reached, joined; nothing where none."""
        key = (state.tenant, state.name)
        known = self._parts.get(key)
        if known is not None and known[0] is state:
            return known[1]
        found = []
        latest = state.resolve(None, None)
        if latest is not None:
            found += [self.card(state.name, latest), self.card(latest.model, latest)]
        for alias in sorted(state.aliases):
            version = state.resolve(alias, None)
            if version is not None:
                found.append(self.card(f"{state.name}:{alias}", version))
        part = b",".join(json.dumps(card, separators=(",", ":")).encode() for card in found)
        self._parts[key] = (state, part)
        return part
