"""Changes of splits in the registry, each in one step for all readers."""

from __future__ import annotations

from bmt_server.errors import Conflict
from bmt_server.registry.canary.scripts import END_VOID, PROMOTE, ROLL_BACK, SET_SPLIT
from bmt_server.registry.canary.split import Split
from bmt_server.registry.registry import Registry


class Splits:
    """Writes of splits. All methods raise RegistryDown.

    if_match: digest of the version that the alias must have, None for any.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def set(
        self, tenant: str, name: str, alias: str, split: Split, if_match: str | None = None
    ) -> None:
        """Point an alias at `split.main` and split it. Raises Conflict, NotFound."""
        targets = [t.digest if t is not None else "" for t in (split.canary, split.shadow)]
        arguments = [split.main, split.text, *targets]
        await self._run(SET_SPLIT, tenant, name, alias, if_match, *arguments)

    async def promote(
        self,
        tenant: str,
        name: str,
        alias: str,
        canary: str | None = None,
        if_match: str | None = None,
    ) -> str:
        """Make an alias's canary its main version, and end the split.

        canary: digest that it must have. Returns its digest. Raises Conflict, also without a
        canary, and NotFound.
        """
        return await self._run(PROMOTE, tenant, name, alias, if_match, canary or "")

    async def roll_back(
        self, tenant: str, name: str, alias: str, if_match: str | None = None
    ) -> str:
        """End a split: all requests get the main version, and no copies are sent.

        Returns the main version's digest. Raises Conflict, also without a split, and NotFound.
        """
        return await self._run(ROLL_BACK, tenant, name, alias, if_match)

    async def end_void(self, tenant: str, name: str, alias: str) -> str:
        """Remove a split that is void: its alias was moved, or a version of it is gone.

        Returns the digest of its canary, or shadow; empty if there was no such split.
        """
        path = f"{tenant}/{name}"
        outcome, ended = await self._registry.run_script(END_VOID, path, [], [alias, ""])
        return ended if outcome == "ok" else ""

    async def _run(
        self,
        script: str,
        tenant: str,
        name: str,
        alias: str,
        if_match: str | None,
        *arguments: str,
    ) -> str:
        given = [alias, if_match or "", *arguments]
        outcome, detail = await self._registry.run_script(script, f"{tenant}/{name}", [], given)
        if outcome in ("no_canary", "no_split"):
            lacks = "no canary" if outcome == "no_canary" else "neither canary nor shadow"
            raise Conflict(
                f"{name}:{alias} has {lacks}; all its requests get {name}@{detail[:12]}",
                code="no_canary",
            )
        if outcome == "other_canary":
            raise Conflict(
                f"the canary of {name}:{alias} is {name}@{detail[:12]} now. Read it again and retry"
            )
        self._registry.expect_ok(outcome, name, alias, detail)
        return detail
