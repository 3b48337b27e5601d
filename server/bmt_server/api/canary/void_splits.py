"""Removal of splits that are void, as servers of versions before splits leave them behind.

Such a server moves an alias, or removes a version, and knows nothing of the split. The split is not
in force from that moment on; it is removed too, and said in the log, because it would be in force
again if the alias came back to its version.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from bmt_server.errors import ApiError
from bmt_server.registry.canary.splits import Splits
from bmt_server.registry.connection import end_task
from bmt_server.registry.names.catalog import Key
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.schemas import DIGEST_SHOWN

logger = logging.getLogger("vllm.bmt_server")


class VoidSplits:
    """Ends void splits in the background; of several servers, one does it and says so."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self._tasks: dict[tuple[Key, str], asyncio.Task[None]] = {}

    def look_at(self, key: Key, state: NameState | None) -> None:
        """End those of a (tenant, name), whose new state this is."""
        for alias in state.void_splits() if state is not None and state.splits else ():
            at = (key, alias)
            if at not in self._tasks:
                self._tasks[at] = asyncio.create_task(self._end(key, alias))
                self._tasks[at].add_done_callback(partial(self._forget, at))

    def _forget(self, at: tuple[Key, str], _: asyncio.Task[None]) -> None:
        self._tasks.pop(at, None)

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            await end_task(task)

    async def _end(self, key: Key, alias: str) -> None:
        tenant, name = key
        try:
            ended = await self._splits.end_void(tenant, name, alias)
        except ApiError as error:
            # It is not in force, and the next change of the name is another occasion.
            logger.info("The void split of %s:%s was not removed: %s.", name, alias, error)
            return
        if ended:
            logger.warning(
                "The split of %s:%s of tenant %s has ended: its alias was moved, or a version of "
                "it was removed, by a server that knows no splits. Its canary or shadow was %s@%s; "
                "all requests get the alias's version.",
                name,
                alias,
                tenant,
                name,
                ended[:DIGEST_SHOWN],
            )
