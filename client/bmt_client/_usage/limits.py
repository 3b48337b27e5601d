"""Limits of single keys and tenants, for the operator: routes, flows and models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import quote

from .._errors import ProtocolError, UsageError
from .._models import Model
from .._retry import RetryPolicy, exchange, remove
from .._transport import Flow, Request, parse_json


@dataclass(frozen=True, kw_only=True)
class Limits(Model):
    """Limits of a key or a tenant. None: as the server's flag says; 0: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None  # 30 days
    storage_bytes: int | None = None  # of a tenant alone
    versions: int | None = None  # of a tenant alone

    def given(self) -> dict[str, int]:
        """The limits that are set, by name."""
        return {name: value for name, value in self.as_dict().items() if value is not None}

    def over(self, defaults: Limits) -> Limits:
        """These limits, with the defaults for those that are None."""
        return Limits(**{**defaults.given(), **self.given()})


LIMIT_NAMES = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, kw_only=True)
class LimitTable:
    """Limits that are stored for single keys, by id, and tenants; and those of all others."""

    key_defaults: Limits
    tenant_defaults: Limits
    keys: Mapping[str, Limits]
    tenants: Mapping[str, Limits]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LimitTable:
        """Build from the server's JSON. Raises ProtocolError."""
        defaults = _object(raw, "defaults")
        return cls(
            key_defaults=Limits.from_json(_object(defaults, "keys")),
            tenant_defaults=Limits.from_json(_object(defaults, "tenants")),
            keys={name: Limits.from_json(one) for name, one in _object(raw, "keys").items()},
            tenants={name: Limits.from_json(one) for name, one in _object(raw, "tenants").items()},
        )

    def of(self, *, key: str | None = None, tenant: str | None = None) -> Limits:
        """The limits that apply to a key, by its id, or to a tenant."""
        if key is not None:
            return self.keys.get(key, Limits()).over(self.key_defaults)
        return self.tenants.get(tenant or "", Limits()).over(self.tenant_defaults)


def show(policy: RetryPolicy) -> Flow[LimitTable]:
    response = yield from exchange(Request("GET", "/v1/limits"), policy)
    return LimitTable.from_json(parse_json(response))


def put(policy: RetryPolicy, limits: Limits, key: str | None, tenant: str | None) -> Flow[Limits]:
    body = json.dumps(limits.given()).encode()
    headers = {"Content-Type": "application/json"}
    request = Request("PUT", _path(key, tenant), headers=headers, body=body)
    response = yield from exchange(request, policy)
    return Limits.from_json(parse_json(response))


def delete(policy: RetryPolicy, key: str | None, tenant: str | None) -> Flow[None]:
    yield from remove(Request("DELETE", _path(key, tenant)), policy)


def _path(key: str | None, tenant: str | None) -> str:
    """Path of the limits of one key or one tenant. Raises UsageError for both or none."""
    kind, name = ("keys", key) if tenant is None else ("tenants", tenant)
    if not name or (key is not None and tenant is not None):
        raise UsageError("give either the id of a key or a tenant")
    return f"/v1/limits/{kind}/{quote(name, safe='')}"


def _object(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name)
    if not isinstance(found, Mapping):
        raise ProtocolError(
            f"the limits have no object `{name}`; they have {sorted(map(str, raw))}"
        )
    return found
