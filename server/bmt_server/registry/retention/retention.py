"""Removal of versions by retention rules, by the servers themselves.

The process that publishes under a name applies the name's rule a second later. Each minute, one
process of all servers applies the rules of all names: those of ages, and of what is left over. A
script in the registry compares what the process knows of the name with what is there, so two of
them, or one that lags behind, remove nothing that the rule would keep.

A version that a request runs on stays: each minute, all processes note such versions in the
registry for three minutes. A request that began since then ends on its version all the same, as
after any removal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from redis.exceptions import RedisError

from bmt_server.errors import ApiError
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import end_task
from bmt_server.registry.names.catalog import Key
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.periodic import about, take_lease
from bmt_server.registry.registry import Registry
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.retention.rules import Rule
from bmt_server.registry.retention.scripts import HOLD, RETAIN, SET_RETENTION

logger = logging.getLogger("vllm.bmt_server")

HOLDS = PREFIX + "holds"
LEASE = PREFIX + "retention"
_EVERY_S = 60.0
_AFTER_PUBLISH_S = 1.0
# Versions of one script, and scripts of one pass over a name: the next pass goes on.
AT_ONCE = 200
_SCRIPTS = 10
# Pause before a name is looked at again that another process has changed.
_LAG_S = 0.1
# Names looked at before other work of the event loop gets its turn, about 1 ms.
_TURN = 500


class Retention:
    """Rules of names, set and applied. All methods raise RegistryDown.

    default: rule of names without one. removed: called with the files of removed versions.
    in_use: "<tenant>/<name>@<digest>" of the versions that this process's requests run on.
    """

    def __init__(
        self,
        registry: Registry,
        replica: RegistryReplica,
        *,
        default: Rule,
        removed: Callable[[Iterable[str]], None],
        in_use: Callable[[], set[str]],
        every_s: float = _EVERY_S,
        after_publish_s: float = _AFTER_PUBLISH_S,
    ) -> None:
        self.default = default
        self._registry = registry
        self._replica = replica
        self._removed = removed
        self._in_use = in_use
        self._every_s, self._after_publish_s = every_s, after_publish_s
        self._published: set[Key] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._run(), name="bmt-retention"),
            asyncio.create_task(self._run_published(), name="bmt-retention-published"),
        ]

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await end_task(task)

    def published(self, tenant: str, name: str) -> None:
        """Apply the rule of a name soon, because it has a further version or another rule."""
        self._published.add((tenant, name))
        self._wake.set()

    async def set_rule(self, tenant: str, name: str, rule: Rule | None) -> None:
        """Set a name's rule; None: the server's default. Raises NotFound."""
        text = "" if rule is None else str(rule)
        outcome, _ = await self._registry.run_script(SET_RETENTION, f"{tenant}/{name}", [], [text])
        self._registry.expect_ok(outcome, name, None, "")
        await self._replica.refresh(tenant, name, ())
        self.published(tenant, name)

    async def apply(self, tenant: str, name: str) -> int:
        """Remove the versions of a name that its rule does not keep; the number of them."""
        total = refused = 0
        for _ in range(_SCRIPTS):
            state = self._replica.get(tenant, name)
            due = self._due(state)
            if state is None or not due:
                break
            gone = await self._remove(state, due)
            if gone is None:
                refused += 1
                await asyncio.sleep(_LAG_S)  # the event of the change is on its way
                continue
            total += gone
            if gone < len(due):
                break  # requests of other servers run on the others
        if refused == _SCRIPTS:
            logger.warning(
                "The retention rule of %s of tenant %s was not applied: the name changes all the "
                "time, or has unreadable versions (bmt-server fsck).",
                name,
                tenant,
            )
        return total

    async def apply_all(self) -> int:
        """Apply the rules of all names; the number of versions removed."""
        due: list[Key] = []
        for page in self._replica.catalog.pages(_TURN):
            due += [(state.tenant, state.name) for state in page if self._due(state)]
            await asyncio.sleep(0)
        return sum([await self.apply(*key) for key in due])

    async def hold(self) -> None:
        """Note in the registry the versions that requests run on, and forget old notes."""
        now = time.time()
        times = str(int(now)), str(int(now + 3 * self._every_s) + 1)
        quick, used = self._registry.connection.quick, self._in_use()
        await self._registry.connection.call(lambda: quick.eval(HOLD, 1, HOLDS, *times, *used))

    def _due(self, state: NameState | None) -> list[str]:
        """Digests of at most `AT_ONCE` versions that go, the oldest."""
        if state is None or len(state.versions) < 2:
            return []
        due, used = list[str](), None
        for entry in state.due(state.rule(self.default), time.time()):
            used = self._in_use() if used is None else used
            if f"{state.tenant}/{state.name}@{entry.digest}" not in used:
                due.append(entry.digest)
                if len(due) == AT_ONCE:
                    break
        return due

    async def _remove(self, state: NameState, digests: list[str]) -> int | None:
        """Remove versions; None if the name is not as `state` says any more."""
        entries = {digest: state.versions.entry(digest) for digest in digests}
        outcome, detail = await self._registry.run_script(
            RETAIN,
            f"{state.tenant}/{state.name}",
            [HOLDS],
            [
                *(state.retention or "", str(state.rev), str(len(state.versions))),
                *(str(int(time.time())), *digests),
            ],
        )
        if outcome != "ok":
            return None
        gone = detail.split()
        if gone:
            await self._replica.refresh(state.tenant, state.name, gone)
            self._removed(e.file_digest.hex() for d in gone if (e := entries[d]) is not None)
            logger.info(
                "Removed %d versions of %s of tenant %s by its retention rule (%s).",
                len(gone),
                state.name,
                state.tenant,
                state.rule(self.default).describe(),
            )
        return len(gone)

    async def _run(self) -> None:
        connection = self._registry.connection
        while True:
            await asyncio.sleep(about(self._every_s))
            if not self._replica.synced.is_set():
                continue
            try:
                leased = await take_lease(connection, LEASE, 0.8 * self._every_s)
                if leased or self._in_use():
                    await self.hold()
                if leased:
                    await self.apply_all()
            except (ApiError, RedisError) as error:
                logger.info("Retention rules were not applied: %s.", error)

    async def _run_published(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._after_publish_s)
            self._wake.clear()
            names, self._published = self._published, set()
            for key in names:
                try:
                    await self.apply(*key)
                except (ApiError, RedisError) as error:
                    logger.info("The retention rule of %s was not applied: %s.", key[1], error)
