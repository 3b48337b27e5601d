"""URL of a registry: one Redis or Valkey, its sentinels, or nodes of its cluster.

::

    redis://[user:password@]host[:6379][/db][?option=value]     rediss:// with TLS
    unix://[user:password@]/path/of/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379],host…/service[/db]
    redis+cluster://[user:password@]host[:6379],host…

Each form takes `?prefix=team-a`: a registry of its own on a Redis that several share. Its keys
begin with `{bmt:team-a}:` in place of `{bmt}:`.

`valkey` may replace `redis`, and `valkeys` may replace `rediss`. Options are those of redis-py's
connections, such as `ssl_ca_certs`. `sentinel_username` and `sentinel_password` are for sentinels,
which have users of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

import bmt_core
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.sentinel import Sentinel

from bmt_server.ipc.blob import PREFIX

Kind = Literal["server", "sentinel", "cluster"]
Node = tuple[str, int]

_URL = re.compile(
    r"(?P<scheme>rediss?|valkeys?|unix)(?:\+(?P<kind>sentinel|cluster))?://"
    r"(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^/?]*)(?P<path>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_KINDS: dict[str | None, Kind] = {None: "server", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_MAX_PREFIX = 64
# Options of redis-py that change replies, or are objects that a URL cannot have.
_REFUSED = frozenset(
    (
        *("credential_provider", "decode_responses", "encoding", "encoding_errors"),
        *("event_dispatcher", "redis_connect_func", "retry"),
    )
)
_FORMS = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """Parsed URL. `repr` and `str` contain no user, password or option.

    nodes: (host, port) of the server, of sentinels or of cluster nodes; empty for a Unix socket.
    options: arguments of redis-py's connections, without host and port.
    service: name of the primary that sentinels watch.
    prefix: of this registry among others on the same Redis; empty for the default one.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    tls: bool
    options: Mapping[str, Any] = field(repr=False)
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> RegistryAddress:
        """Parse a registry's URL. Raises ValueError, whose message does not repeat the URL."""
        url, _, query = url.strip().partition("?")
        options = parse_qsl(query, keep_blank_values=True)
        prefix = [value for name, value in options if name == "prefix"]
        if not prefix:
            return cls._parse(f"{url}?{query}" if query else url)
        others = {name: value for name, value in options if name != "prefix"}
        return replace(cls._parse(url + _query(others)), prefix=_prefix(prefix))

    @classmethod
    def _parse(cls, url: str) -> RegistryAddress:
        found = _URL.fullmatch(url)
        if found is None:
            raise ValueError(f"the registry's URL must begin with {_FORMS}")
        scheme, kind = found["scheme"], _KINDS[found["kind"]]
        query = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
        # One database and one path of a socket: a cluster and sentinels have neither.
        if scheme == "unix":
            if kind != "server" or found["hosts"]:
                raise ValueError("a unix:// URL has the form unix:///path/of/socket")
            return cls("server", (), False, _options(f"unix://{_rest(found, query)}"))
        tls = scheme in ("rediss", "valkeys")
        nodes = tuple(_node(host, _PORTS[kind]) for host in found["hosts"].split(","))
        path, service = found["path"].strip("/"), ""
        sentinel = {
            name: query.pop(f"sentinel_{name}")
            for name in ("username", "password")
            if f"sentinel_{name}" in query
        }
        if kind == "sentinel":
            service, _, path = path.partition("/")
            if not service:
                raise ValueError(
                    "a URL of sentinels ends with the name of the service that they watch, as in "
                    "redis+sentinel://host:26379/mymaster"
                )
        elif sentinel or (kind == "server" and len(nodes) > 1):
            raise ValueError(
                "several hosts, sentinel_username and sentinel_password need redis+sentinel:// or "
                "redis+cluster://"
            )
        if path and (kind == "cluster" or not path.isdigit()):
            raise ValueError("the path of a registry's URL is the number of a database")
        user = f"{found['user']}@" if found["user"] is not None else ""
        tail = f"/{path}" if path else ""
        one = f"{'rediss' if tls else 'redis'}://{user}host{tail}{_query(query)}"
        return cls(kind, nodes, tls, _options(one), unquote(service), sentinel)

    def __str__(self) -> str:
        where = ", ".join(f"{host}:{port}" for host, port in self.nodes)
        if not self.nodes:
            where = f"socket {self.options['path']}"
        kind = {"server": "", "sentinel": "sentinels ", "cluster": "cluster "}[self.kind]
        return kind + where + (f", prefix {self.prefix}" if self.prefix else "")

    @property
    def tag(self) -> str:
        """First characters of each key: the hash tag, so that a registry has one slot."""
        return f"{{{PREFIX[1:-2]}:{self.prefix}}}:" if self.prefix else PREFIX

    def key(self, key: str) -> str:
        """A key of the default registry as this one has it."""
        return self.tag + key.removeprefix(PREFIX)

    def blocking_client(self, **options: Any) -> Any:
        """A client without asyncio, for threads. options: of redis-py; the URL's own win."""
        merged = {**options, **self.options}
        if self.kind == "server":
            if self.nodes:
                merged["host"], merged["port"] = self.nodes[0]
            else:
                merged["unix_socket_path"] = merged.pop("path")
            return redis.Redis(ssl=self.tls, **merged)
        if self.kind == "cluster":
            merged.pop("db", None)
            nodes = [ClusterNode(host, port) for host, port in self.nodes]  # type: ignore[no-untyped-call]
            return RedisCluster(startup_nodes=nodes, ssl=self.tls, **merged)
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            self.nodes, sentinel_kwargs={**options, **self.tls_options(), **self.sentinel_options}
        )
        return sentinels.master_for(self.service, ssl=self.tls, **merged)  # type: ignore[no-untyped-call]

    def as_cluster(self) -> RegistryAddress:
        """The cluster of a server that turned out to be a node of one."""
        return replace(self, kind="cluster")

    def tls_options(self) -> dict[str, Any]:
        """Arguments for a client of the same TLS and no user."""
        return {
            "ssl": self.tls,
            **{k: v for k, v in self.options.items() if k.startswith("ssl_")},
        }


def _prefix(values: list[str]) -> str:
    """The option `prefix`, by the grammar of names. Raises ValueError."""
    try:
        if len(values) > 1:
            raise ValueError("it is given twice")
        if len(values[0]) > _MAX_PREFIX:
            raise ValueError(f"it has at most {_MAX_PREFIX} characters")
        return bmt_core.validate_name(values[0])
    except (ValueError, bmt_core.InvalidName) as error:
        raise ValueError(f"the option prefix in the registry's URL: {error}") from None


def with_password(url: str, password: str) -> str:
    """The URL with the password, percent-encoded. A password in the URL has precedence.

    Raises ValueError for text that is no registry's URL.
    """
    RegistryAddress.parse(url)
    found = _URL.fullmatch(url.strip())
    assert found is not None
    user = found["user"] or ""
    if ":" in user:
        return url
    scheme, _, rest = url.strip().partition("://")
    rest = rest.partition("@")[2] if found["user"] is not None else rest
    return f"{scheme}://{user}:{quote(password, safe='')}@{rest}"


def _node(text: str, port: int) -> Node:
    """Host and port; an IPv6 address is in brackets. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?", text)
    if found is None or int(found[3] or port) > 65535:
        # Without the text: it is part of a password that contains an unencoded slash.
        raise ValueError(
            "a host in the registry's URL is not host, host:port or [IPv6]:port; encode special "
            "characters of a user or password, as in %2F"
        )
    return found[1] or unquote(found[2]), int(found[3] or port)


def _rest(found: re.Match[str], query: Mapping[str, str]) -> str:
    user = f"{found['user']}@" if found["user"] is not None else ""
    return f"{user}{found['path']}{_query(query)}"


def _query(query: Mapping[str, str]) -> str:
    return f"?{urlencode(query)}" if query else ""


def _options(url: str) -> dict[str, Any]:
    """Arguments of redis-py's connections in the URL of one server. Raises ValueError."""
    options = dict(parse_url(url))  # type: ignore[no-untyped-call]
    for name in ("host", "port"):
        options.pop(name, None)
    kind = options.pop("connection_class", redis.Connection)
    if refused := _REFUSED & options.keys():
        raise ValueError(f"the registry's URL may not have the option {', '.join(sorted(refused))}")
    try:
        kind(**options)
    except (TypeError, AttributeError, redis.RedisError) as error:
        raise ValueError(f"unknown option in the registry's URL: {error}") from None
    return options
