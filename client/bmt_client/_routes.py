"""Requests of the bmt-server's HTTP API, one function per route. No I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ._transport import Progress, Request

# 64 completions of 4,096 tokens, each with its log-probability, are about 50 MB.
ANSWER_BYTES = 512 << 20


def put_mask(
    name: str,
    data: bytes,
    sha256: bytes,
    *,
    aliases: tuple[str, ...] = (),
    if_match: str | None = None,
    if_none_match: bool = False,
    expires: str | None = None,
    sent: Progress | None = None,
) -> Request:
    """Upload `data` as a version of `name`; `sha256` is its digest, 32 bytes."""
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Digest": f"sha-256=:{base64.b64encode(sha256).decode()}:",
        **_if_match(if_match),
    }
    if if_none_match:
        headers["If-None-Match"] = "*"
    return Request(
        "PUT",
        _mask(name),
        params=(*(("alias", alias) for alias in aliases), *_expires(expires)),
        headers=headers,
        body=data,
        sent=sent,
    )


def import_mask(
    name: str,
    source: str,
    aliases: tuple[str, ...] = (),
    digest: str | None = None,
    if_match: str | None = None,
    if_none_match: bool = False,
    expires: str | None = None,
) -> Request:
    """Have the server publish the file at `source`; `digest` is the SHA-256 that it must have."""
    params = [*(("alias", alias) for alias in aliases), *_expires(expires)]
    if digest is not None:
        params.append(("digest", digest))
    headers = {"Content-Type": "application/json", **_if_match(if_match)}
    if if_none_match:
        headers["If-None-Match"] = "*"
    body = json.dumps({"source": source}).encode()
    return Request("POST", f"{_mask(name)}/import", tuple(params), headers, body)


def patch_mask(
    name: str,
    flips: bytes,
    parent: str,
    digest: str,
    if_match: str | None,
    resident: bool,
    expires: str | None,
) -> Request:
    """Publish a version of `name`: its version `parent` (a digest) with positions flipped."""
    params = [("parent", parent), ("digest", digest), *_expires(expires)]
    if resident:
        params.append(("resident", "true"))
    return Request(
        "PATCH",
        _mask(name),
        params=tuple(params),
        headers={"Content-Type": "application/octet-stream", **_if_match(if_match)},
        body=flips,
    )


def list_masks(limit: int, after: str | None) -> Request:
    return Request("GET", "/v1/masks", params=_page(limit, after))


def get_mask(ref: str) -> Request:
    return Request("GET", _mask(ref))


def list_versions(name: str, limit: int, after: str | None) -> Request:
    return Request("GET", f"{_mask(name)}/versions", params=_page(limit, after))


def delete_mask(name: str) -> Request:
    return Request("DELETE", _mask(name))


def delete_version(name: str, digest: str) -> Request:
    return Request("DELETE", f"{_mask(name)}/versions/{_quote(digest)}")


def prune(name: str, keep_last: int | None, older_than: str | None, dry_run: bool) -> Request:
    bounds = {"keep_last": keep_last, "older_than": older_than}
    given = tuple((key, str(value)) for key, value in bounds.items() if value is not None)
    if dry_run:
        given += (("dry_run", "true"),)
    return Request("POST", f"{_mask(name)}/prune", params=given)


def retention(name: str, rule: Mapping[str, Any] | None, delete: bool = False) -> Request:
    """Show the retention rule of `name`, set it to `rule`, or delete it."""
    path = f"{_mask(name)}/retention"
    if delete:
        return Request("DELETE", path)
    if rule is None:
        return Request("GET", path)
    headers = {"Content-Type": "application/json"}
    return Request("PUT", path, headers=headers, body=json.dumps(rule).encode())


def get_alias(name: str, alias: str) -> Request:
    return Request("GET", _alias(name, alias))


def promote(name: str, alias: str, canary: str | None, if_match: str | None) -> Request:
    """Make the canary of `alias` its version; `canary` is the digest that it must have."""
    return Request(
        "POST",
        f"{_alias(name, alias)}/promote",
        headers={"Content-Type": "application/json", **_if_match(if_match)},
        body=json.dumps({} if canary is None else {"canary": canary}).encode(),
    )


def roll_back(name: str, alias: str, if_match: str | None) -> Request:
    """End the canary and the shadow of `alias`."""
    return Request("POST", f"{_alias(name, alias)}/rollback", headers=_if_match(if_match))


def put_alias(name: str, alias: str, target: Mapping[str, Any], if_match: str | None) -> Request:
    """Point `alias` at `target`: {"digest": hex} or {"rev": n}, with `canary` and `shadow`."""
    return Request(
        "PUT",
        _alias(name, alias),
        headers={"Content-Type": "application/json", **_if_match(if_match)},
        body=json.dumps(target).encode(),
    )


def delete_alias(name: str, alias: str, if_match: str | None) -> Request:
    return Request("DELETE", _alias(name, alias), headers=_if_match(if_match))


def pin(name: str, pinned: bool) -> Request:
    return Request("PUT" if pinned else "DELETE", f"{_mask(name)}/pin")


def get_blob(file_digest: str, max_bytes: int, received: Progress | None = None) -> Request:
    return Request(
        "GET",
        f"/v1/blobs/{_quote(file_digest)}",
        headers={"Accept": "application/octet-stream"},
        max_bytes=max_bytes,
        received=received,
    )


def me() -> Request:
    return Request("GET", "/v1/me")


def complete(fields: Mapping[str, Any]) -> Request:
    return Request(
        "POST",
        "/v1/completions",
        headers={"Content-Type": "application/json"},
        body=json.dumps(fields).encode(),
        max_bytes=ANSWER_BYTES,
    )


def chat(fields: Mapping[str, Any]) -> Request:
    """A conversation's next message, as a stream of events."""
    return Request(
        "POST",
        "/v1/chat/completions",
        headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
        body=json.dumps({**fields, "stream": True}).encode(),
    )


def list_models() -> Request:
    return Request("GET", "/v1/models")


def ready() -> Request:
    # "Not ready" is an answer, not a failure: no retries.
    return Request("GET", "/readyz", retry=False)


def _quote(part: str) -> str:
    # Defense in depth: names are validated before they reach a path.
    return quote(part, safe="@:")


def _mask(ref: str) -> str:
    return f"/v1/masks/{_quote(ref)}"


def _alias(name: str, alias: str) -> str:
    return f"{_mask(name)}/aliases/{_quote(alias)}"


def _page(limit: int, after: str | None) -> tuple[tuple[str, str], ...]:
    params = [("limit", str(limit))]
    if after is not None:
        params.append(("after", after))
    return tuple(params)


def _expires(text: str | None) -> tuple[tuple[str, str], ...]:
    return () if text is None else (("expires", text),)


def _if_match(digest: str | None) -> dict[str, str]:
    return {} if digest is None else {"If-Match": f'"{digest}"'}
