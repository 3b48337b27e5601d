"""Redis and Valkey as operators run them: replicas, sentinels, clusters, TLS, limited users.

Valkey is the bundled binary, which runs as sentinel and as cluster node too. It has no TLS;
`redis-server` of the host has, if it is installed.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from bmt_server.registry.embedded import binary_path
from redis.crc import key_slot

from tests.support.http.ports import free_port

REDIS = shutil.which("redis-server")
# The rights that docs/operating/operate.md states.
RIGHTS = (
    "~{bmt}:* +@read +@write +@scripting +@connection +@transaction +info +time +wait +waitaof "
    "+cluster|slots"
)
START_S = 20


def until(condition: Callable[[], Any], within_s: float = START_S) -> Any:
    """The first true value of a condition that may raise redis-py's errors."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@dataclass
class Node:
    """One server process on a port of the loopback."""

    folder: Path
    options: tuple[str, ...] = ()
    binary: str = ""
    port: int = field(default_factory=free_port)
    tls: bool = False
    process: subprocess.Popen | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.host}"

    def client(self, **options: Any) -> Any:
        if self.tls:
            options |= {"ssl": True, "ssl_cert_reqs": "none"}
        return redis.Redis(port=self.port, socket_timeout=2, decode_responses=True, **options)

    def add_user(self, name: str, rights: str) -> None:
        """Make a user with the password `p`."""
        self.client().execute_command("ACL", "SETUSER", name, "on", ">p", *rights.split())

    def start(self, wait: bool = True) -> Node:
        self.folder.mkdir(parents=True, exist_ok=True)
        port = ("--port", "0", "--tls-port") if self.tls else ("--port",)
        command = [self.binary or str(binary_path()), *port, str(self.port)]
        command += ["--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", *self.options]
        # SIGXFSZ stays ignored, as Python has it, so that `fill_disk` makes writes fail.
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            restore_signals=False,
        )
        if wait:
            until(lambda: self.client().execute_command("PING"))
        return self

    def fill_disk(self, limit: int = resource.RLIM_INFINITY) -> None:
        """Let no file of the server grow beyond a size in bytes, as a full disk would."""
        assert self.process is not None
        hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (limit, hard))

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def node(folder: Path, *options: str, **more: Any) -> Iterator[Node]:
    """One server, with an append-only file unless the options say otherwise."""
    one = Node(folder, ("--appendonly", "yes", *options), **more)
    try:
        yield one.start()
    finally:
        one.kill()


@contextlib.contextmanager
def replicated(folder: Path, replicas: int, *options: str) -> Iterator[list[Node]]:
    """A primary and its replicas, in step."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(node(folder / "0", *options))
        follow = ("--replicaof", "127.0.0.1", str(first.port), "--repl-diskless-sync-delay", "0")
        nodes = [first]
        for i in range(replicas):
            nodes.append(stack.enter_context(node(folder / str(i + 1), *options, *follow)))
        for one in nodes[1:]:
            until(lambda one=one: one.client().info("replication")["master_link_status"] == "up")
        yield nodes


@dataclass
class HighlyAvailable:
    """Nodes behind sentinels, or of a cluster. url: for a server; primary: of the registry."""

    url: str
    nodes: list[Node]
    find: Callable[[], int]  # port of the registry's primary, as its watchers know it

    @property
    def primary(self) -> Node:
        port = self.find()
        return next(n for n in self.nodes if n.port == port)

    def elected(self, other_than: int, within_s: float = 30) -> float:
        """Wait for another primary; the time at which it is known."""
        until(lambda: self.find() != other_than, within_s)
        return time.monotonic()


@contextlib.contextmanager
def sentinels(folder: Path, replicas: int = 2) -> Iterator[HighlyAvailable]:
    """A primary with replicas, watched by three sentinels that agree after a second."""
    with replicated(folder, replicas) as nodes, contextlib.ExitStack() as stack:
        watchers = []
        for i in range(3):
            watcher = Node(folder / f"sentinel{i}")
            watcher.folder.mkdir()
            config = watcher.folder / "sentinel.conf"
            config.write_text(
                f"port {watcher.port}\nbind 127.0.0.1\n"
                f"sentinel monitor masks 127.0.0.1 {nodes[0].port} 2\n"
                "sentinel down-after-milliseconds masks 1000\n"
                "sentinel failover-timeout masks 5000\n"
            )
            watcher.process = subprocess.Popen(
                [str(binary_path()), str(config), "--sentinel"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(watcher.kill)
            watchers.append(watcher)

        def state(watcher: Node) -> dict[str, str]:
            raw = watcher.client().execute_command("SENTINEL", "MASTER", "masks")
            return raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))

        for watcher in watchers:
            until(
                lambda w=watcher: (
                    (s := state(w))
                    and int(s["num-other-sentinels"]) == 2
                    and int(s["num-slaves"]) == replicas
                )
            )

        def find() -> int:
            for watcher in watchers:
                with contextlib.suppress(redis.RedisError):
                    return int(state(watcher)["port"])
            raise AssertionError("no sentinel answers")

        hosts = ",".join(w.host for w in watchers)
        yield HighlyAvailable(f"redis+sentinel://{hosts}/masks", nodes, find)


@contextlib.contextmanager
def cluster(folder: Path, shards: int = 3) -> Iterator[HighlyAvailable]:
    """Shards with one replica each, which take over a second after a failure."""
    with contextlib.ExitStack() as stack:
        nodes: list[Node] = []
        for i in range(2 * shards):
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
            bus = ("--cluster-port", str(free_port()), "--repl-diskless-sync-delay", "0")
            nodes.append(stack.enter_context(node(folder / str(i), *options, *bus)))
        _join(nodes, shards)

        def find() -> int:
            slot = key_slot(b"bmt")
            for one in nodes:
                with contextlib.suppress(redis.RedisError):
                    for first, last, owner, *_ in slots(one):
                        if first <= slot <= last:
                            return int(owner[1])
            raise AssertionError("no node answers")

        hosts = ",".join(n.host for n in nodes)
        yield HighlyAvailable(f"redis+cluster://{hosts}", nodes, find)


def slots(one: Node) -> list[Any]:
    client = one.client()
    client.set_response_callback("CLUSTER SLOTS", lambda reply, **_: reply)
    return client.execute_command("CLUSTER SLOTS")


def _join(nodes: list[Node], shards: int) -> None:
    share = 16384 // shards
    for i, one in enumerate(nodes[:shards]):
        last = 16383 if i == shards - 1 else (i + 1) * share - 1
        one.client().execute_command(f"CLUSTER ADDSLOTSRANGE {i * share} {last}")
    for one in nodes[1:]:
        bus = one.client().config_get("cluster-port")["cluster-port"]
        nodes[0].client().execute_command(f"CLUSTER MEET 127.0.0.1 {one.port} {bus}")
    for one in nodes:
        until(lambda one=one: len(_known(one)) == len(nodes))
    for i, one in enumerate(nodes[shards:]):
        identity = nodes[i].client().execute_command("CLUSTER MYID")
        until(lambda one=one, identity=identity: identity in _known(one))
        one.client().execute_command(f"CLUSTER REPLICATE {identity}")
    for one in nodes:
        until(lambda one=one: "cluster_state:ok" in _info(one))
    for one in nodes[shards:]:
        until(lambda one=one: one.client().info("replication")["master_link_status"] == "up")
    for one in nodes:
        until(lambda one=one: sum(len(e) - 3 for e in slots(one)) == shards)


def _known(one: Node) -> str | list[str]:
    client = one.client()
    client.set_response_callback("CLUSTER NODES", lambda reply, **_: reply)
    text = client.execute_command("CLUSTER NODES")
    return [line.split(" ")[0] for line in text.splitlines() if "handshake" not in line]


def _info(one: Node) -> str:
    client = one.client()
    client.set_response_callback("CLUSTER INFO", lambda reply, **_: reply)
    return str(client.execute_command("CLUSTER INFO"))
