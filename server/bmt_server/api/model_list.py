"""OpenAI's list of models: the base model, and a tenant's masks under all their names.

OpenAI's API has no pages, so with 100,000 masks the list is 30 MB of JSON. It is made and sent in
parts, and other requests of the process get their turn in between.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

from bmt_server.api.engine import Engine
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.versions import Entry
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import DIGEST_SHOWN, Version

# Names in a part of the list, about 2 ms.
_PART = 250


class ModelList:
    """Model cards of one server."""

    def __init__(self, replica: RegistryReplica, engine: Engine, fingerprint: str) -> None:
        """fingerprint: of the served base; masks of others are not listed."""
        self._replica = replica
        self._engine = engine
        self._fingerprint = fingerprint
        self._started = int(time.time())

    async def listing(self, tenant: str) -> AsyncIterator[bytes]:
        """JSON of `GET /v1/models` in parts, sorted by name, the base model first.

        A name that is published or deleted meanwhile is in the list or not; all others are, once.
        """
        cards = [json.dumps(self.base_card(name)) for name in self._engine.base_names]
        yield ('{"object":"list","data":[' + ",".join(cards)).encode()
        card, after = self._template(), ""
        while states := self._replica.catalog.page(tenant, after, _PART):
            after = states[-1].name
            yield "".join(
                card % (name, entry.created, f"{state.name}@{entry.digest[:DIGEST_SHOWN]}")
                for state in states
                for name, entry in _names(state)
                if entry.fingerprint == self._fingerprint
            ).encode()
            await asyncio.sleep(0)
        yield b"]}"

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

    def _template(self) -> str:
        """A mask's card after a comma; its names are ASCII of a grammar without quotes."""
        rest = json.dumps(self._engine.base_names[0]), json.dumps(self._engine.max_model_len)
        parent, length = (text.replace("%", "%%") for text in rest)
        return (
            ',{"id":"%s","object":"model","created":%d,"owned_by":"bmt","root":"%s",'
            f'"parent":{parent},"max_model_len":{length}}}'
        )


def _names(state: NameState) -> Iterator[tuple[str, Entry]]:
    """All names by which requests reach a mask, with their versions."""
    latest = state.entry(None)
    if latest is not None:
        yield state.name, latest
        yield f"{state.name}@{latest.digest[:DIGEST_SHOWN]}", latest
    for alias in sorted(state.aliases):
        entry = state.entry(alias)
        if entry is not None:
            yield f"{state.name}:{alias}", entry
