"""The operator's list of places that masks may be imported from (`--import-from`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bmt_server.errors import BadRequest, Forbidden
from bmt_server.settings import SettingsError
from bmt_server.sources.locations import (
    BucketFile,
    HubFile,
    Location,
    WebFile,
    parse_location,
    parse_url,
)

SETTING = "--import-from"
_FORMS = "hf://, hf://org, hf://org/name, s3://bucket/prefix, https://host/prefix"
_HUB_ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?|")


@dataclass(frozen=True, slots=True)
class _Web:
    """An entry with a scheme. below: all hosts below this one; prefix: without a final '/'."""

    origin: tuple[str, str, int]
    prefix: str
    below: bool

    def has(self, file: WebFile) -> bool:
        scheme, host, port = self.origin
        if (file.scheme, file.port) != (scheme, port):
            return False
        if not (file.host.endswith(f".{host}") if self.below else file.host == host):
            return False
        return _under(file.path, self.prefix)


class AllowList:
    """Places with commas, such as `hf://acme,s3://bucket/masks,https://models.example.com`.

    `https://*.example.com` is all hosts below a domain. Raises SettingsError.
    """

    def __init__(self, text: str = "") -> None:
        self._web: list[_Web] = []
        self._hub: list[str] = []
        self._buckets: list[tuple[str, str]] = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            self._add(entry)

    def __bool__(self) -> bool:
        return bool(self._web or self._hub or self._buckets)

    @property
    def hub(self) -> bool:
        """True if it has places on the Hub."""
        return bool(self._hub)

    def check(self, place: Location) -> None:
        """Raise Forbidden for a place outside of the list. Places in the registry need none."""
        if isinstance(place, HubFile):
            allowed = any(_under(f"/{place.repository}", prefix) for prefix in self._hub)
        elif isinstance(place, BucketFile):
            allowed = any(
                place.bucket == bucket and _under(f"/{place.key}", prefix)
                for bucket, prefix in self._buckets
            )
        elif isinstance(place, WebFile):
            allowed = self.has_url(place)
        else:
            return
        if allowed:
            return
        if not self:
            raise Forbidden(
                f"this server imports from no place outside of its registry; its operator opens "
                f"places with {SETTING}. Upload the file instead",
                code="imports_off",
                param="source",
            )
        raise Forbidden(
            f"{place.shown[:300]} is not among the places that this server imports from; its "
            f"operator adds places with {SETTING}. Upload the file instead",
            code="source_not_allowed",
            param="source",
        )

    def has_url(self, file: WebFile) -> bool:
        """True if an entry with a scheme and host covers this URL."""
        return any(entry.has(file) for entry in self._web)

    def _add(self, entry: str) -> None:
        scheme, found, rest = entry.partition("://")
        rest = rest.rstrip("/")
        if found and scheme == "hf" and _HUB_ENTRY.fullmatch(rest):
            self._hub.append(f"/{rest}" if rest else "")
            return
        try:
            if found and scheme == "s3":
                # A key, because the place of an object needs one.
                place = parse_location(f"s3://{rest}/x")
                if isinstance(place, BucketFile):
                    prefix = place.key.removesuffix("x").rstrip("/")
                    self._buckets.append((place.bucket, f"/{prefix}" if prefix else ""))
                    return
            if found and scheme in ("https", "http"):
                below = rest.startswith("*.")
                file = parse_url(f"{scheme}://{rest.removeprefix('*.')}")
                if not file.query and "*" not in file.shown:
                    self._web.append(_Web(file.origin, file.path.rstrip("/"), below))
                    return
        except BadRequest:
            pass
        raise SettingsError(
            f"import_from ({SETTING}) has {_without_secrets(entry)!r}; entries have the "
            f"forms {_FORMS}, with commas between them"
        )


def _without_secrets(entry: str) -> str:
    """An entry for a message, which ends in logs: its scheme alone if it may have a secret."""
    scheme, found, _ = entry.partition("://")
    secret = re.search("[@?#]", entry) is not None
    return (
        f"{f'{scheme}://' if found else ''}… with a user, password or query"
        if secret
        else entry[:200]
    )


def _under(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}/")
