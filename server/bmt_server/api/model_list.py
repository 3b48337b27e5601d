"""OpenAI's list of models: the base model, and a tenant's masks under all their names.

With thousands of masks the list is a megabyte of JSON. Building all of it for each request would
block the event loop, and every stream with it, for the duration of several steps. So the cards of a
mask are kept as bytes until its registry entry changes.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from bmt_server.api.engine import Engine
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import NameState, Version


class ModelList:
    """Model cards of one server."""

    def __init__(self, replica: RegistryReplica, engine: Engine) -> None:
        self._replica = replica
        self._engine = engine
        self._started = int(time.time())
        # Tenant and name -> its registry entry, and the cards made from it.
        self._cards: dict[tuple[str, str], tuple[NameState, bytes]] = {}
        self._prune_above = 100

    def listing(self, tenant: str) -> bytes:
        """JSON of `GET /v1/models`, sorted by name, the base model first."""
        states = self._replica.of_tenant(tenant)
        if len(self._cards) > self._prune_above:
            self._cards = {k: c for k, c in self._cards.items() if self._replica.get(*k) is c[0]}
            self._prune_above = 2 * len(self._cards) + 100
        cards = [json.dumps(self.base_card(name)).encode() for name in self._engine.base_names]
        cards += [joined for state in states if (joined := self._mask_cards(state))]
        return b'{"object":"list","data":[' + b",".join(cards) + b"]}"

    def base_card(self, name: str) -> dict[str, Any]:
        """Card of one name of the base model."""
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "bmt",
            # Not the checkpoint's folder, which is the server's own affair.
            "root": name,
            "parent": None,
            "max_model_len": self._engine.max_model_len,
        }

    def card(self, name: str, version: Version) -> dict[str, Any]:
        """Card of one name of a mask."""
        return {
            **self.base_card(name),
            "created": int(datetime.fromisoformat(version.created).timestamp()),
            "root": version.model,
            "parent": self._engine.base_names[0],
        }

    def _mask_cards(self, state: NameState) -> bytes:
        """Cards of all names of a mask, joined by commas; empty if it has none."""
        key = (state.tenant, state.name)
        cached = self._cards.get(key)
        if cached is not None and cached[0] is state:
            return cached[1]
        cards = []
        latest = state.resolve(None, None)
        if latest is not None:
            cards += [self.card(state.name, latest), self.card(latest.model, latest)]
        for alias in sorted(state.aliases):
            version = state.resolve(alias, None)
            if version is not None:
                cards.append(self.card(f"{state.name}:{alias}", version))
        joined = b",".join(json.dumps(card, separators=(",", ":")).encode() for card in cards)
        self._cards[key] = (state, joined)
        return joined
