"""Flow of each client method: the logic of both clients, without I/O.

The first argument of every flow is the retry policy. If the answer to a first attempt is lost, the
server may have carried it out nevertheless. A 404 or 412 on the second attempt is then no failure,
so the flows check the state before they raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from bmt_core import Mask, encode, symmetric_difference

from . import _routes as routes
from ._errors import Conflict, NotFound, ProtocolError, Unavailable, UsageError
from ._files import Prepared, decode, destination, hex_sha256, prepare, write_atomically
from ._models import Alias, KeyInfo, MaskInfo, ModelInfo, Page, Retention, Upload, Version
from ._names import alias_name, is_digest, mask_name, mask_ref, version_digest
from ._retry import RetryPolicy, exchange, remove
from ._transport import Call, Flow, Progress, Request, Response, acknowledge, parse_json

Target = str | int | Version


def upload(
    policy: RetryPolicy,
    source: str | PathLike[str] | bytes | Mask,
    name: str | None,
    alias: Sequence[str],
    if_match: str | None,
    if_none_match: bool,
    expires: str | None,
    progress: Progress | None,
) -> Flow[Upload]:
    aliases = tuple(alias_name(a) for a in ([alias] if isinstance(alias, str) else alias))
    if if_match is not None and if_none_match:
        raise UsageError("if_match and if_none_match exclude each other; give one of them")
    file: Prepared = yield Call(lambda: prepare(source, name))
    if if_match is not None:
        if_match = yield from _full_digest(policy, file.name, if_match)
    request = routes.put_mask(
        file.name,
        file.data,
        file.sha256,
        aliases=aliases,
        if_match=if_match,
        if_none_match=if_none_match,
        expires=expires,
        sent=progress,
    )
    try:
        response = yield from exchange(request, policy)
    except Conflict as error:
        current = None
        if error.attempts > 1:
            current = yield from get(policy, file.name)
        if current is None or current.digest != file.digest:
            raise
        # The first attempt succeeded; only its answer was lost.
        return Upload.from_json(current.as_dict())
    version = _published(response, file.digest)
    # A mask that exists keeps its first file, which may differ in codec and metadata.
    if response.status == 201 and version.file_digest:
        _check("file digest", version.file_digest, file.sha256.hex())
    return version


def import_mask(
    policy: RetryPolicy,
    source: str,
    name: str,
    alias: Sequence[str],
    digest: str | None,
    if_match: str | None,
    if_none_match: bool,
    expires: str | None,
) -> Flow[Upload]:
    aliases = tuple(alias_name(a) for a in ([alias] if isinstance(alias, str) else alias))
    if if_match is not None and if_none_match:
        raise UsageError("if_match and if_none_match exclude each other; give one of them")
    name = mask_name(name)
    if if_match is not None:
        if_match = yield from _full_digest(policy, name, if_match)
    request = routes.import_mask(name, source, aliases, digest, if_match, if_none_match, expires)
    response = yield from exchange(request, policy)
    outcome = "created" if response.status == 201 else "unchanged"
    return Upload.from_json({"outcome": outcome, **parse_json(response)})


def push(
    policy: RetryPolicy,
    name: str,
    old: Mask,
    new: Mask,
    if_match: str | None,
    resident: bool,
    expires: str | None,
) -> Flow[Upload]:
    name = mask_name(name)
    flips = symmetric_difference(old, new, dict(new.metadata))
    data: bytes = yield Call(lambda: encode(flips))
    request = routes.patch_mask(name, data, old.digest, new.digest, if_match, resident, expires)
    response = yield from exchange(request, policy)
    return _published(response, new.digest)


def _published(response: Response, digest: str) -> Upload:
    """Parse the version in the answer of a publishing route and check its mask digest."""
    outcome = "created" if response.status == 201 else "unchanged"
    version = Upload.from_json({"outcome": outcome, **parse_json(response)})
    _check("mask digest", version.digest, digest)
    return version


def page(policy: RetryPolicy, limit: int, after: str | None) -> Flow[Page]:
    if not 1 <= limit <= 1000:
        raise UsageError(f"page_size is {limit}; it must be 1 to 1000")
    result = yield from _page(policy, routes.list_masks(limit, after), MaskInfo, "name", limit)
    if after is not None and result.next == after:
        raise ProtocolError(f"the server answers the page after {after!r} with itself")
    return result


def get(policy: RetryPolicy, ref: str) -> Flow[Version]:
    response = yield from exchange(routes.get_mask(mask_ref(ref)), policy)
    return Version.from_json(parse_json(response))


def versions(policy: RetryPolicy, name: str) -> Flow[tuple[Version, ...]]:
    name, limit = mask_name(name), 100
    collected: dict[int, Version] = {}
    after: str | None = None
    while True:
        request = routes.list_versions(name, limit, after)
        part = yield from _page(policy, request, Version, "rev", limit)
        new = [version for version in part.data if version.rev not in collected]
        collected |= {version.rev: version for version in new}
        # A server without paging repeats the whole list: nothing new ends the loop.
        if part.next is None or not new:
            return tuple(collected[rev] for rev in sorted(collected, reverse=True))
        after = part.next


def alias(policy: RetryPolicy, name: str, alias: str) -> Flow[Alias]:
    name, alias = mask_name(name), alias_name(alias)
    response = yield from exchange(routes.get_alias(name, alias), policy)
    return Alias.from_json({"name": name, "alias": alias, **parse_json(response)})


def split(
    policy: RetryPolicy,
    name: str,
    alias_: str,
    to: Target | None,
    canary: Target | None,
    percent: float | None,
    shadow: Target | None,
    shadow_percent: float | None,
    if_match: str | None,
) -> Flow[Alias]:
    """Set an alias with a canary and a shadow. Without `to`, what is not given stays as it is."""
    parts = (("canary", canary, percent), ("shadow", shadow, shadow_percent))
    given = [part for part, version, share in parts if version is not None or share is not None]
    if not given:
        if to is None:
            raise UsageError("give the version of the alias, or a canary or a shadow for it")
        return (yield from set_alias(policy, name, alias_, to, {}, if_match))
    for part, _, share in parts:
        if share is not None and not 0 <= share <= 100:
            raise UsageError(f"the share of the {part} is {share}; it must be 0 to 100 percent")
    now: Alias | None = None
    if to is None:
        now = yield from alias(policy, name, alias_)
        # What was read stays so until it is written.
        if_match = if_match or now.digest
    split: dict[str, Any] = {}
    for part, version, share in parts:
        if now is not None:
            version = getattr(now, part) if version is None else version
            known = now.percent if part == "canary" else now.shadow_percent
            share = known if share is None else share
        if version is None and share is None:
            continue
        if version is None:
            raise UsageError(f"name the version of the {part}, because none is known")
        if share is None:
            raise UsageError(f"give the share of the {part}, in percent")
        split[part] = {**(yield from _target(policy, name, version)), "percent": share}
    target = to if to is not None else now.digest if now is not None else ""
    return (yield from set_alias(policy, name, alias_, target, split, if_match))


def promote(
    policy: RetryPolicy, name: str, alias_: str, canary: str | None, if_match: str | None
) -> Flow[Alias]:
    now = yield from alias(policy, name, alias_)
    canary = now.canary if canary is None else (yield from _full_digest(policy, name, canary))
    if canary is None:
        # Without a digest, the server would promote one that another caller sets meanwhile.
        raise Conflict(f"{now.name}:{now.alias} has no canary", code="no_canary")
    if_match = now.digest if if_match is None else if_match
    # Compare-and-set on what was seen above, so that another canary is not promoted unseen.
    request = routes.promote(now.name, now.alias, canary, if_match)
    changed: Alias = yield from _changed(policy, now, request, canary)
    _check("main version after the promotion", changed.digest, canary)
    return changed


def rollback_alias(
    policy: RetryPolicy, name: str, alias_: str, if_match: str | None
) -> Flow[Alias]:
    now = yield from alias(policy, name, alias_)
    return (
        yield from _changed(
            policy, now, routes.roll_back(now.name, now.alias, if_match), now.digest
        )
    )


def _changed(policy: RetryPolicy, now: Alias, request: Request, wanted: str | None) -> Flow[Alias]:
    """End a split by `request`, after which the alias is the version `wanted`."""
    names = {"name": now.name, "alias": now.alias}
    try:
        response = yield from exchange(request, policy)
    except Conflict as error:
        if error.attempts > 1:
            left = yield from alias(policy, now.name, now.alias)
            if left.digest == wanted and left.canary is None and left.shadow is None:
                return left
        raise
    return Alias.from_json({**names, **parse_json(response)})


def set_alias(
    policy: RetryPolicy,
    name: str,
    alias: str,
    to: str | int | Version,
    split: Mapping[str, Any],
    if_match: str | None,
) -> Flow[Alias]:
    """Point an alias at a version, with this canary and shadow as the server takes them."""
    name, alias = mask_name(name), alias_name(alias)
    target: dict[str, Any] = {**(yield from _target(policy, name, to)), **split}
    if if_match is not None:
        if_match = yield from _full_digest(policy, name, if_match)
    try:
        response = yield from exchange(routes.put_alias(name, alias, target, if_match), policy)
    except Conflict as error:
        current = None
        if error.attempts > 1 and not split:
            current = yield from get(policy, f"{name}:{alias}")
        if current is None or not _is_target(current, target):
            raise
        return Alias(name=name, alias=alias, digest=current.digest, rev=current.rev)
    return Alias.from_json({"name": name, "alias": alias, **parse_json(response)})


def delete_alias(policy: RetryPolicy, name: str, alias: str, if_match: str | None) -> Flow[None]:
    name = mask_name(name)
    if if_match is not None:
        if_match = yield from _full_digest(policy, name, if_match)
    yield from remove(routes.delete_alias(name, alias_name(alias), if_match), policy)


def rollback(policy: RetryPolicy, name: str, to: str | int | Version | None) -> Flow[Version]:
    name = mask_name(name)
    current = yield from get(policy, name)
    if to is None:
        # A server without paging answers with all versions, newest first.
        request = routes.list_versions(name, 1, str(current.rev))
        before = yield from _page(policy, request, Version, "rev", 1)
        older = [v for v in before.data if v.rev < current.rev]
        if not older:
            raise NotFound(
                f"{name} has no version before rev {current.rev}, its latest; "
                f"upload one, or name an existing one with `to`",
                code="no_previous_version",
            )
        to = max(older, key=lambda version: version.rev)
    # Compare-and-set on the version seen above, so that a newer upload is not undone.
    moved = yield from set_alias(policy, name, "latest", to, {}, current.digest)
    return (yield from get(policy, f"{name}@{moved.digest}"))


def delete(policy: RetryPolicy, name: str) -> Flow[None]:
    yield from remove(routes.delete_mask(mask_name(name)), policy)


def delete_version(policy: RetryPolicy, name: str, digest: str) -> Flow[None]:
    name = mask_name(name)
    digest = yield from _full_digest(policy, name, digest)
    yield from remove(routes.delete_version(name, digest), policy)


def prune(
    policy: RetryPolicy, name: str, keep_last: int | None, older_than: str | None, dry_run: bool
) -> Flow[tuple[str, ...]]:
    if keep_last is None and older_than is None:
        raise UsageError("give keep_last, older_than, or both: without, prune has no bound")
    if keep_last is not None and keep_last < 1:
        raise UsageError(f"keep_last is {keep_last}; it must be at least 1")
    name = mask_name(name)
    tried = yield from exchange(routes.prune(name, keep_last, older_than, True), policy)
    due = _removed(tried)
    if dry_run or not due:
        return due
    response = yield from exchange(routes.prune(name, keep_last, older_than, False), policy)
    removed = _removed(response)
    if response.attempts > 1:
        # An attempt whose answer was lost has removed versions that this answer does not have.
        left = {version.digest for version in (yield from versions(policy, name))}
        removed = tuple(d for d in dict.fromkeys((*due, *removed)) if d not in left)
    return removed


def retention(
    policy: RetryPolicy, name: str, rule: Mapping[str, Any] | None, delete: bool = False
) -> Flow[Retention]:
    name = mask_name(name)
    if delete:
        yield from exchange(routes.retention(name, None, True), policy)
        rule = None
    response = yield from exchange(routes.retention(name, rule), policy)
    return Retention.from_json(parse_json(response))


def _removed(response: Response) -> tuple[str, ...]:
    removed = parse_json(response).get("removed")
    if not isinstance(removed, list):
        raise ProtocolError("the answer has no `removed` list")
    return tuple(version_digest(str(one["digest"])) for one in removed)


def read(policy: RetryPolicy, ref: str, progress: Progress | None) -> Flow[bytes]:
    _, data = yield from _fetch(policy, ref, progress)
    return data


def download(
    policy: RetryPolicy,
    ref: str,
    path: str | PathLike[str] | None,
    progress: Progress | None,
) -> Flow[Path]:
    version, data = yield from _fetch(policy, ref, progress)
    target = destination(path, version.name)
    yield Call(lambda: write_atomically(target, data))
    return target


def pin(policy: RetryPolicy, name: str, pinned: bool) -> Flow[None]:
    name = mask_name(name)
    response = yield from exchange(routes.pin(name, pinned), policy)
    # Pinning answers with the mask, unpinning with nothing.
    if response.status == 204 or Version.from_json(parse_json(response)).name != name:
        acknowledge(response)


def me(policy: RetryPolicy) -> Flow[KeyInfo]:
    response = yield from exchange(routes.me(), policy)
    return KeyInfo.from_json(parse_json(response))


def complete(policy: RetryPolicy, fields: Mapping[str, Any]) -> Flow[dict[str, Any]]:
    response = yield from exchange(routes.complete(fields), policy)
    return parse_json(response)


def models(policy: RetryPolicy) -> Flow[tuple[ModelInfo, ...]]:
    response = yield from exchange(routes.list_models(), policy)
    data = parse_json(response).get("data")
    if not isinstance(data, list):
        raise ProtocolError("the list of models has no `data` list")
    return tuple(ModelInfo.from_json(entry) for entry in data)


def ready(policy: RetryPolicy) -> Flow[bool]:
    try:
        answer = parse_json((yield from exchange(routes.ready(), policy)))
    except (Unavailable, NotFound, ProtocolError):
        return False
    return answer.get("status") == "ready" or answer.get("ready") is True


def _page(policy: RetryPolicy, request: Request, model: Any, cursor: str, limit: int) -> Flow[Page]:
    response = yield from exchange(request, policy)
    return Page.from_json(parse_json(response), model, cursor, limit)


def _fetch(policy: RetryPolicy, ref: str, progress: Progress | None) -> Flow[tuple[Version, bytes]]:
    version = yield from get(policy, ref)
    request = routes.get_blob(version.file_digest, version.bytes, progress)
    response = yield from exchange(request, policy)
    digest = yield Call(lambda: hex_sha256(response.body))
    _check("file digest", digest, version.file_digest)
    return version, response.body


def _target(policy: RetryPolicy, name: str, to: str | int | Version) -> Flow[dict[str, str | int]]:
    """Body of the aliases route for `to`: {"digest": …} or {"rev": …}."""
    if isinstance(to, Version):
        return {"digest": to.digest}
    if isinstance(to, int):
        return {"rev": to}
    if is_digest(to):
        return {"digest": to}
    if to.startswith(("@", ":")):
        to = f"{name}{to}"
    elif to != name and not set(to) & {"@", ":"}:
        to = f"{name}:{to}"
    ref = mask_ref(to)
    version = yield from get(policy, ref)
    if version.name != name:
        raise UsageError(f"{to!r} is a version of {version.name}, not of {name}")
    return {"digest": version.digest}


def _is_target(version: Version, target: Mapping[str, Any]) -> bool:
    if "rev" in target:
        return bool(version.rev == target["rev"])
    return version.digest.startswith(str(target["digest"]))


def _full_digest(policy: RetryPolicy, name: str, digest: str) -> Flow[str]:
    """Complete a digest prefix to 64 hex digits; asks the server."""
    digest = version_digest(digest)
    if len(digest) < 64:
        digest = (yield from get(policy, f"{name}@{digest}")).digest
    return digest


def verify_mask(data: bytes, digest: str) -> None:
    """Raise ProtocolError unless `data` is a mask with this mask digest; Invalid if it is none."""
    _check("mask digest", decode(data).digest, digest)


def _check(field: str, value: str, expected: str) -> None:
    if value != expected:
        raise ProtocolError(
            f"the server's {field} is {value or 'missing'}, expected {expected}: the bytes changed "
            "in transit or in storage; try again, and report it to the server's operator",
            code="digest_mismatch",
        )
