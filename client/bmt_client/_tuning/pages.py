"""Lists in OpenAI's form, page by page."""

from __future__ import annotations

from typing import Any, TypeVar

from .._errors import ProtocolError
from .._models import Model
from .._retry import RetryPolicy, exchange
from .._transport import Flow, Request, parse_json

M = TypeVar("M", bound=Model)


def pages(
    policy: RetryPolicy, path: str, kind: type[M], limit: int | None, page: int
) -> Flow[tuple[M, ...]]:
    """The newest `limit` objects of a list, all with None. page: of one request at most."""
    found: list[M] = []
    after: str | None = None
    while limit is None or len(found) < limit:
        size = page if limit is None else min(page, limit - len(found))
        params = [("limit", str(size)), *([("after", after)] if after is not None else [])]
        response = yield from exchange(Request("GET", path, params=tuple(params)), policy)
        raw = parse_json(response)
        data: Any = raw.get("data")
        if not isinstance(data, list):
            raise ProtocolError(f"the list of {path} has no `data`")
        found += [kind.from_json(one) for one in data]
        last = data[-1].get("id") if data else None
        if not raw.get("has_more") or last is None:
            break
        if last == after:
            raise ProtocolError(f"the server answers the page after {after!r} with itself")
        after = last
    return tuple(found)
