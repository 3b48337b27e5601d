"""Certificates that a client trusts and proxies that it uses: one rule for all of its requests.

Trusted are the certificates of `ca_file` (--ca-file, BMT_CA_FILE), else of SSL_CERT_FILE or
SSL_CERT_DIR, else of the system, also on a loopback address. Proxies come from HTTP_PROXY,
HTTPS_PROXY, ALL_PROXY and NO_PROXY; requests to a loopback address use none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from bmt_client._config import Target
from bmt_client._errors import UsageError

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def trust_source(target: Target) -> str:
    """The source of the trusted certificates: a path, or `system`."""
    given = [target.ca_file, *map(os.environ.get, _VARIABLES)]
    return next((source for source in given if source), "system")


def http_arguments(target: Target) -> dict[str, Any]:
    """Arguments of an `httpx2` client: trust and proxies. Raises UsageError."""
    return {
        "verify": ssl_context(target),
        # Requests to this machine, which carry the key, must not go through a proxy.
        "trust_env": not target.loopback,
    }


def ssl_context(target: Target) -> ssl.SSLContext:
    """TLS settings for the target. Raises UsageError if a file of certificates cannot be used."""
    import ssl

    if target.url.startswith("http://"):
        # Loading the trusted certificates takes 15 to 30 ms. This context trusts none.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sources = {
        "--ca-file or BMT_CA_FILE": target.ca_file,
        **{name: os.environ.get(name) for name in _VARIABLES},
    }
    for source, path in sources.items():
        if path:
            return _loaded(path, source)
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


def build(kind: Callable[..., T], arguments: dict[str, Any]) -> T:
    """Construct an `httpx2` client. Raises UsageError if a proxy of the environment is unusable."""
    import httpx2

    try:
        return kind(**arguments)
    except ImportError as error:
        raise UsageError(
            f"{_proxy_variables()} is a SOCKS proxy, which needs: pip install 'httpx2[socks]'",
            code="proxy",
        ) from error
    except (ValueError, httpx2.InvalidURL) as error:
        # The value may have a password.
        raise UsageError(
            f"{_proxy_variables()} has no proxy's address; it must look like "
            "http://proxy.example:3128",
            code="proxy",
        ) from error


def proxy_variable(target: Target) -> str | None:
    """Name of the variable with the proxy of the target, or None without one.

    Only for messages and `status`: `httpx2` selects the proxy, and knows networks in NO_PROXY.
    """
    if target.loopback:
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies, parts = getproxies(), urlsplit(target.url)
    if proxy_bypass(parts.netloc):
        return None
    return next((f"{s.upper()}_PROXY" for s in (parts.scheme, "all") if proxies.get(s)), None)


def _proxy_variables() -> str:
    from urllib.request import getproxies

    proxies = getproxies()
    return " or ".join(f"{s.upper()}_PROXY" for s in ("http", "https", "all") if proxies.get(s))


def _loaded(path: str, source: str) -> ssl.SSLContext:
    import ssl

    try:
        if not os.path.isdir(path):
            return ssl.create_default_context(cafile=path)
        if not any(_HASHED.fullmatch(name) for name in os.listdir(path)):
            raise UsageError(
                f"the folder {path} ({source}) has no certificates by hash; run: "
                f"openssl rehash {path}",
                code="ca_file",
            )
        return ssl.create_default_context(capath=path)
    except (OSError, ValueError) as error:
        reason = "it has no certificate"
        if not isinstance(error, ssl.SSLError):
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(
            f"the trusted certificates in {path} ({source}) cannot be read: {reason}",
            code="ca_file",
        ) from error
