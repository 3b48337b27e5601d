"""Resolution of a request's `model` to one version of a mask, once, at admission."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import bmt_core

from bmt_server.api.canary.arm import Arm, Copy, Draw
from bmt_server.api.engine import Engine
from bmt_server.api.masks.condition import ANY_VERSION, Condition
from bmt_server.api.masks.lifecycle import MaskLifecycle, TrackedVersion
from bmt_server.errors import NotFound
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import DEFAULT_TENANT, DIGEST_SHOWN, Version


class Lease:
    """A request's hold on its version, which stays usable until `release`, even if deleted.

    model: the name that vLLM's handlers look up. version: None for the base model. arm: of an alias
    that is split. copy: for the alias's shadow, if the request is one of its share.
    """

    def __init__(
        self,
        model: str,
        lifecycle: MaskLifecycle,
        tracked: TrackedVersion | None = None,
        version: Version | None = None,
        arm: Arm | None = None,
        copy: Copy | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.arm = arm
        self.copy = copy
        self._lifecycle = lifecycle
        self._tracked = tracked
        self._loading = tracked.loading if tracked is not None else None

    async def ready(self) -> None:
        """Wait until the workers have the mask. Raises ApiError if they cannot load it."""
        if self._loading is None or self._tracked is None:
            return
        await asyncio.wait([self._loading])
        error = self._loading.exception()
        if error is not None and not self._lifecycle.resident(self._tracked):
            raise error

    def release(self) -> None:
        """End the hold. Idempotent."""
        tracked, self._tracked = self._tracked, None
        if tracked is not None:
            self._lifecycle.release(tracked)


class Resolver:
    """Resolves names against the local replica of the registry."""

    def __init__(
        self,
        replica: RegistryReplica,
        lifecycle: MaskLifecycle,
        engine: Engine,
        fingerprint: str,
    ) -> None:
        """fingerprint: of the served base; other servers' masks may be of others."""
        self._replica = replica
        self._lifecycle = lifecycle
        self._engine = engine
        self._fingerprint = fingerprint

    async def find(self, tenant: str, model: str) -> Version:
        """The version that a mask's name refers to now. Raises NotFound, RegistryDown.

        Of an alias that is split, it is the main version. model: also after the base model's name
        and a colon, as `base:mask`.
        """
        _, _, version = await self._find(tenant, model)
        return version

    async def _find(self, tenant: str, model: str) -> tuple[NameState, bmt_core.MaskRef, Version]:
        unknown = NotFound(f"The model `{model[:200]}` does not exist.", code="model_not_found")
        prefix = f"{tenant}/"
        text = self._without_base(model)
        text = text.removeprefix(prefix) if tenant != DEFAULT_TENANT else text
        try:
            ref = bmt_core.MaskRef.parse(text)
        except bmt_core.InvalidName:
            raise self._unknown_name(model, text) or unknown from None
        state = self._replica.get(tenant, ref.name)
        version = state.resolve(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            # It may have been published through another replica a moment ago.
            state = await self._replica.look_up(tenant, ref.name, ref.digest_prefix)
            version = state.resolve(ref.alias, ref.digest_prefix) if state else None
        if state is None or version is None:
            raise unknown
        return state, ref, version

    def _without_base(self, model: str) -> str:
        # The longest name first: `gpt-oss:120b` and `gpt-oss` may both be names of the base.
        for name in sorted(self._engine.base_names, key=len, reverse=True):
            if model.startswith(f"{name}:"):
                return model[len(name) + 1 :]
        return model

    @staticmethod
    def _unknown_name(model: str, text: str) -> NotFound | None:
        """The error for a name of the Hub, which no mask has; None for other text."""
        proposed = bmt_core.suggest_name(text)
        if proposed is None:
            return None
        return NotFound(
            f"The model `{model[:200]}` does not exist. A mask of that name is called "
            f"`{proposed}` here.",
            code="model_not_found",
        )

    async def find_served(self, tenant: str, model: str) -> Version:
        """The same, of a mask of the served base alone. Raises NotFound, RegistryDown."""
        version = await self.find(tenant, model)
        self.check_base(version)
        return version

    def serves(self, version: Version) -> bool:
        """True if it is a mask of the served base."""
        return version.base.fingerprint == self._fingerprint

    def check_base(self, version: Version) -> None:
        """Raise NotFound (`base_mismatch`) for a mask of another base than the served one."""
        if not self.serves(version):
            base = version.base
            raise NotFound(
                f"{version.model} is a mask of {base.model_id[:200]} (fingerprint "
                f"{base.fingerprint[:DIGEST_SHOWN]}…), and this server serves "
                f"{self._engine.base_names[0]} ({self._fingerprint[:DIGEST_SHOWN]}…); ask a server "
                "of that base",
                code="base_mismatch",
                param="model",
            )

    async def acquire(
        self,
        tenant: str,
        model: str,
        condition: Condition = ANY_VERSION,
        *,
        draw: Draw | None = None,
        load: bool = True,
    ) -> Lease:
        """Resolve a model and hold it; the mask loads meanwhile, see `Lease.ready`.

        draw: of the request; None: the main version, whatever the alias's split. A version that
        alone of an alias's two meets the condition answers without a draw.
        load: False if the request needs no more than the name, as for counting tokens. Raises
        ApiError; Conflict if `condition` does not hold.
        """
        if model in self._engine.base_names:
            condition.check(None, f"`{model[:200]}` is the base model")
            return Lease(model, self._lifecycle)
        state, ref, version = await self._find(tenant, model)
        version, arm, copy = self._drawn(state, ref.alias, version, draw, condition)
        self.check_base(version)
        condition.check(version, f"`{model[:200]}` is {version.model}")
        tracked = self._lifecycle.acquire(version, load=load)
        return Lease(version.internal_name, self._lifecycle, tracked, version, arm, copy)

    def hold(self, version: Version) -> Lease:
        """Hold a version of the served base; it loads meanwhile. Raises NotFound."""
        self.check_base(version)
        return Lease(
            version.internal_name, self._lifecycle, self._lifecycle.acquire(version), version
        )

    @staticmethod
    def _drawn(
        state: NameState,
        alias: str | None,
        main: Version,
        draw: Draw | None,
        condition: Condition,
    ) -> tuple[Version, Arm | None, Copy | None]:
        """The version that answers, with its arm and the copy for the shadow, by one split."""
        split = state.split(alias)
        if split is None or alias is None or draw is None:
            return main, None, None
        version, arm = main, Arm.of(main, alias, "main")
        canary = state.versions.get(split.canary.digest) if split.canary is not None else None
        if canary is not None:
            taken = draw.takes_canary(split, state.tenant, state.name, alias)
            if condition.holds(canary) != condition.holds(main):
                taken = condition.holds(canary)
            if taken:
                version, arm = canary, Arm.of(canary, alias, "canary")
        copy = None
        if split.shadow is not None and split.shadow.digest != version.digest:
            shadow = state.versions.get(split.shadow.digest)
            if shadow is not None and draw.takes_shadow(split):
                copy = Copy(shadow, Arm.of(shadow, alias, "shadow"))
        return version, arm, copy

    def public_names(self, internal: Iterable[str]) -> list[str]:
        """Names by which requests may reach these internal names, the most specific last."""
        names: list[str] = []
        for name in internal:
            tenant, _, model = name.rpartition("/")
            base, _, prefix = model.partition("@")
            state = self._replica.get(tenant or DEFAULT_TENANT, base)
            if state is not None:
                for alias, digest in (("", state.latest or ""), *state.aliases.items()):
                    split = state.split(alias)
                    canary = split.canary.digest if split is not None and split.canary else ""
                    if digest.startswith(prefix) or canary.startswith(prefix):
                        names.append(f"{base}:{alias}" if alias else base)
            names.append(name)
        return list(dict.fromkeys(names))
