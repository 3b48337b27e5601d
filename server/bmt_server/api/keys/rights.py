"""Rights of a key over keys: none gives what it does not have itself.

A tenant's `admin` manages the keys of its tenant, and a key with the scope `operator` those of all
tenants. Rights are a tenant, scopes and a time: so a key cannot make one that outlives it, and can
neither rotate nor revoke one that may more.
"""

from __future__ import annotations

from bmt_server.errors import Forbidden, NotFound
from bmt_server.registry.keys.expiry import read_expiry
from bmt_server.registry.keys.record import SCOPES, KeyRecord
from bmt_server.registry.schemas import Principal


def may_see(principal: Principal, record: KeyRecord) -> bool:
    """True for keys of the caller's tenant, and for all keys with the scope `operator`."""
    return principal.may("operator") or record.tenant == principal.tenant


def check_tenant(principal: Principal, tenant: str) -> None:
    """Raise Forbidden for keys of another tenant than the caller's."""
    if tenant != principal.tenant and not principal.may("operator"):
        raise Forbidden(
            f"keys of another tenant than {principal.tenant!r} need a key with the scope "
            "'operator'; create one by `bmt-server keys create --scope operator`",
            code="tenant_forbidden",
            param="tenant",
        )


def check_scopes(principal: Principal, scopes: tuple[str, ...]) -> None:
    """Raise Forbidden for a scope that the caller does not have."""
    unknown = [] if principal.may("operator") else [s for s in scopes if s not in SCOPES]
    missing = [scope[:64] for scope in scopes if not principal.may(scope)] + unknown
    if missing:
        raise Forbidden(
            f"this key does not have the scope {missing[0]!r}; it has "
            f"{', '.join(sorted(principal.scopes))}",
            code="scope_exceeded",
            param="scopes",
        )


def check_expiry(principal: Principal, expires: str | None) -> None:
    """Raise Forbidden for a time after the end of the caller's key. expires: ISO 8601, or None."""
    own = None if principal.expires is None else read_expiry(principal.expires)
    wanted = None if expires is None else read_expiry(expires)
    if own is not None and (wanted is None or wanted > own):
        raise Forbidden(
            f"this key expires at {principal.expires}, and a key that it makes may not last "
            f"longer: state `expires`, at most that (it is {expires or 'never'})",
            code="expiry_exceeded",
            param="expires",
        )


def check_change(principal: Principal, record: KeyRecord) -> None:
    """Raise NotFound for a key that the caller does not see, Forbidden for one that may more."""
    if not may_see(principal, record):
        raise NotFound(f"no key {record.key_id}", code="key_unknown")
    check_scopes(principal, record.scopes)
