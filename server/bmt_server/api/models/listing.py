"""List of models: the base model, and a tenant's masks under their names.

OpenAI's API has no pages by default, so with 100,000 masks the list is 20 MB of JSON. It is made
and sent in parts, and other requests of the process get their turn in between. The pages are those
of OpenAI's and of Anthropic's other lists.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import Any

from bmt_server.api.engine import Engine
from bmt_server.api.models.query import ModelQuery, Place, base_place, mask_place
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.versions import Entry
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import DIGEST_SHOWN, Version

# Names in a part of the list, about 2 ms.
_PART = 250
#: An id of the list with its card as JSON.
_Card = tuple[str, str]


class ModelList:
    """Model cards of one server."""

    def __init__(self, replica: RegistryReplica, engine: Engine, fingerprint: str) -> None:
        """fingerprint: of the served base; masks of others are not listed."""
        self._replica = replica
        self._engine = engine
        self._fingerprint = fingerprint
        self._started = int(time.time())

    async def listing(self, tenant: str, query: ModelQuery | None = None) -> AsyncIterator[bytes]:
        """JSON of `GET /v1/models` in parts, sorted by name, the base model first.

        A name that is published or deleted meanwhile is in the list or not; all others are, once.
        """
        query = query or ModelQuery()
        yield b'{"object":"list","data":['
        first, last, left, more = None, None, query.limit, False
        async for cards in self._parts(tenant, query):
            if left is not None:
                more = len(cards) > left
                cards = cards[-left:] if query.before else cards[:left]
                left -= len(cards)
            if cards:
                comma = "," if first is not None else ""
                yield (comma + ",".join(card for _, card in cards)).encode()
                first, last = first or cards[0][0], cards[-1][0]
            if more:
                break
        ends = {"first_id": first, "last_id": last, "has_more": more}
        yield b"]," + json.dumps(ends).encode()[1:]

    async def _parts(self, tenant: str, query: ModelQuery) -> AsyncIterator[list[_Card]]:
        """Cards in order, in lists; one list if they are the ones before a place.

        With a limit, the lists may have more, which says that there are further ones.
        """
        template = self._template()
        base = list(self._base(query))
        if query.before is not None:
            last: list[_Card] = []
            async for states in self._states_before(tenant, query):
                last[:0] = self._masks(states, query, template)
                if query.limit is not None and len(last) > query.limit:
                    break
            yield base + last
            return
        yield base
        async for states in self._states(tenant, query):
            yield list(self._masks(states, query, template))

    def _base(self, query: ModelQuery) -> Iterator[_Card]:
        for number, name in enumerate(self._engine.base_names):
            if query.takes("base", name, base_place(number)):
                yield name, json.dumps(self.base_card(name))

    def _masks(
        self, states: Iterable[NameState], query: ModelQuery, template: str
    ) -> Iterator[_Card]:
        taken = self._engine.base_names
        for state in states:
            for kind, name, place, entry in _names(state):
                # Requests for a base model's name get the base model.
                listed = query.takes(kind, name, place) and name not in taken
                if listed and entry.fingerprint == self._fingerprint:
                    root = f"{state.name}@{entry.digest[:DIGEST_SHOWN]}"
                    yield name, template % (name, entry.created, root)

    async def _states(self, tenant: str, query: ModelQuery) -> AsyncIterator[list[NameState]]:
        """States of masks from the query's start on, in parts; nothing between two of them."""
        catalog, prefix = self._replica.catalog, query.name_prefix
        if query.kinds == {"base"}:
            return
        start = max(query.after[1] if query.after else "", prefix)
        first = catalog.get(tenant, start)
        states = [first] if first is not None else []
        states += catalog.page(tenant, start, _PART - 1)
        while states:
            yield [state for state in states if state.name.startswith(prefix)]
            await asyncio.sleep(0)
            if not states[-1].name.startswith(prefix):
                return
            states = catalog.page(tenant, states[-1].name, _PART)

    async def _states_before(
        self, tenant: str, query: ModelQuery
    ) -> AsyncIterator[list[NameState]]:
        """The same from the query's end to its start; each part is in order."""
        catalog, prefix = self._replica.catalog, query.name_prefix
        name = query.before[1] if query.before else ""
        if query.kinds == {"base"} or not name:
            return
        # The mask of `before` itself may have ids before it. "~" follows all characters of names.
        end = min(name + "~", prefix + "~")
        while states := catalog.page_before(tenant, end, _PART):
            yield [state for state in states if state.name.startswith(prefix)]
            await asyncio.sleep(0)
            end = states[0].name
            if end < prefix:
                return

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
        """A mask's card; its names are ASCII of a grammar without quotes."""
        rest = json.dumps(self._engine.base_names[0]), json.dumps(self._engine.max_model_len)
        parent, length = (text.replace("%", "%%") for text in rest)
        return (
            '{"id":"%s","object":"model","created":%d,"owned_by":"bmt","root":"%s",'
            f'"parent":{parent},"max_model_len":{length}}}'
        )


def _names(state: NameState) -> Iterator[tuple[str, str, Place, Entry]]:
    """All names by which requests reach a mask: kind, name, place in the list, version."""
    latest = state.entry(None)
    if latest is not None:
        yield "name", state.name, mask_place(state.name), latest
        version = f"{state.name}@{latest.digest[:DIGEST_SHOWN]}"
        yield "version", version, mask_place(state.name, version=True), latest
    for alias in sorted(state.aliases):
        entry = state.entry(alias)
        if entry is not None:
            yield "alias", f"{state.name}:{alias}", mask_place(state.name, alias), entry
