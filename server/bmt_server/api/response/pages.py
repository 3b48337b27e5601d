"""Pages of lists in OpenAI's form, as of files, batches and checkpoints."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import Any, Protocol


class Shown(Protocol):
    """A record with the form that clients see, which has its `id`."""

    def shown(self) -> dict[str, Any]: ...


async def page_of(records: AsyncIterable[Shown], limit: int) -> dict[str, Any]:
    """The first `limit` records, and whether there are more; reads no more than one further."""
    data: list[dict[str, Any]] = []
    async for record in records:
        if len(data) == limit:
            return page(data, has_more=True)
        data.append(record.shown())
    return page(data, has_more=False)


def page(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page with the ids by which a client asks for its neighbors."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
