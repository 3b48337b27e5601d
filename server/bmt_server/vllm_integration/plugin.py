"""The two entry points through which vLLM finds masks. Importing this imports no vLLM.

`vllm.general_plugins`  register(): in every process; does nothing unless settings were exported.
`vllm.endpoint_plugins` endpoints(): in API processes that name it in VLLM_PLUGINS; our routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from bmt_server.settings import Settings
from bmt_server.vllm_integration.process_context import process_context

GENERAL = "bmt"
ENDPOINTS = "bmt_routes"


def register() -> None:
    """Patch this process's vLLM for masks, where `bmt-server` asked for it."""
    settings = Settings.from_env()
    if settings is None:
        return
    from bmt_server.vllm_integration import patches

    patches.register(settings, process_context().heartbeat)


class MaskEndpoints:
    """vLLM's endpoint plugin (`plugins/endpoint_plugins/interface.py`): routes and their state."""

    name = ENDPOINTS
    required_tasks = None

    def __init__(self) -> None:
        self._app: Any = None
        self._scraped: Any = None

    def attach_router(self, app: Any) -> None:
        from vllm.v1.metrics.prometheus import get_prometheus_registry

        from bmt_server.api import http_protocol
        from bmt_server.api.metrics import scrape
        from bmt_server.api.routes.masks import build_router

        # vLLM configures its HTTP server after this, and offers no way to choose the protocol.
        http_protocol.install()
        app.include_router(build_router())
        self._scraped = scrape.install(app, get_prometheus_registry())
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Build the runtime that routes and gate read; the gate answers 503 until then."""
        from bmt_server.api.app_state import Runtime
        from bmt_server.api.engine_vllm.engine import EngineBridge
        from bmt_server.api.engine_vllm.request_hooks import observe

        settings = Settings.from_env()
        if settings is None:
            raise RuntimeError(f"the plugin {ENDPOINTS!r} runs only under `bmt-server serve`")
        # Each API process takes its share. vLLM has settled the number by now.
        settings = replace(settings, queue=-(-settings.queue // (args.api_server_count or 1)))
        pulse = process_context().heartbeat
        bridge = EngineBridge(engine_client, state.openai_serving_models, settings, pulse)
        runtime = await Runtime.create(settings, bridge, scraped=self._scraped)
        observe(engine_client, runtime.metrics.request_finished, runtime.residency.running, pulse)
        state.bmt = runtime
        self._close_with_app(runtime, bridge)

    def _close_with_app(self, runtime: Any, bridge: Any) -> None:
        router = self._app.router
        inner = router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with inner(app) as state:
                runtime.drain.install()
                try:
                    yield state
                finally:
                    if bridge.died:
                        process_context().engine_died.set()
                    await runtime.close()

        router.lifespan_context = lifespan


def endpoints() -> MaskEndpoints:
    """Factory named by the entry point."""
    return MaskEndpoints()


def missing_entry_points() -> Iterable[str]:
    """Entry points that vLLM would not find: vLLM itself only logs that, and serves without."""
    from importlib.metadata import entry_points

    for group, name in (
        ("vllm.general_plugins", GENERAL),
        ("vllm.endpoint_plugins", ENDPOINTS),
    ):
        if name not in {e.name for e in entry_points(group=group)}:
            yield f"{group}:{name}"
