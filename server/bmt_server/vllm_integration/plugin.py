"""Entry points of vLLM's plugin interfaces. Importing this module imports no vLLM.

`vllm.general_plugins`    register(): in every process; does nothing unless settings were exported
`vllm.endpoint_plugins`   endpoints(): in API processes that name it in VLLM_PLUGINS; our routes
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from bmt_core.gates.geometry import expert_of

from bmt_server.settings import Settings
from bmt_server.vllm_integration.process_context import process_context
from bmt_server.vllm_integration.process_lifetime import end_with_parent
from bmt_server.vllm_integration.start.failures import record_start_errors
from bmt_server.vllm_integration.versions.check import check_version

GENERAL = "bmt"
ENDPOINTS = "bmt_routes"


def register() -> None:
    """Patch this process's vLLM for masks, if `bmt-server` or `bmt_server.offline` started it."""
    settings = Settings.from_env()
    if settings is None:
        return
    end_with_parent()
    check_version(experts=any(map(expert_of, settings.gates)))
    record_start_errors(settings.stats_dir)
    from bmt_server.vllm_integration import patches

    patches.register(settings, process_context().heartbeat)


class MaskEndpoints:
    """Routes of the API and their state, as vLLM's endpoint plugin.

    Implements `EndpointPlugin` (vLLM's `plugins/endpoint_plugins/interface.py`): vLLM calls
    `attach_router` while it builds the app and `init_state` when the engine client exists.
    """

    name = ENDPOINTS
    required_tasks = None

    def __init__(self) -> None:
        self._app: Any = None
        self._scraped: Any = None

    def attach_router(self, app: Any) -> None:
        from vllm.v1.metrics.prometheus import get_prometheus_registry

        from bmt_server.api import http_protocol
        from bmt_server.api.metrics.multiprocess import install_metrics_route
        from bmt_server.api.routes.router import build_router
        from bmt_server.console.router import build_console

        # vLLM configures its HTTP server after this call, and has no option for the protocol.
        http_protocol.install()
        app.include_router(build_router())
        app.include_router(build_console())
        self._scraped = install_metrics_route(app, get_prometheus_registry())
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Build the AppState that routes and middleware read; requests get 503 before that."""
        from bmt_server.api.app_state import AppState
        from bmt_server.api.body.schemas import RequestSchemas
        from bmt_server.api.engine_vllm.engine import VllmEngine
        from bmt_server.api.engine_vllm.request_hooks import install_request_hooks

        settings = Settings.from_env()
        if settings is None:
            raise RuntimeError(f"the plugin {ENDPOINTS!r} runs only under `bmt-server serve`")
        # Each API process admits its share of the server's queue; vLLM has set their number by now.
        settings = replace(settings, queue=-(-settings.queue // (args.api_server_count or 1)))
        heartbeat = process_context().heartbeat
        engine = VllmEngine(engine_client, state.openai_serving_models, settings, heartbeat)
        ours = await AppState.create(
            settings,
            engine,
            scraped=self._scraped,
            schemas=RequestSchemas.of_routes(self._app.routes),
            stop=_Stop(self._app),
        )
        install_request_hooks(
            engine_client, ours.meter.request_finished, ours.lifecycle.hold_for_engine, heartbeat
        )
        state.bmt = ours
        if ours.batch_runner is not None:
            ours.batch_runner.start(self._app)
        self._close_with_app(ours, engine)

    def _close_with_app(self, ours: Any, engine: Any) -> None:
        """Extend the app's lifespan: take over SIGTERM at its start, close our state at its end."""
        router = self._app.router
        vllm_lifespan = router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with vllm_lifespan(app) as state:
                ours.shutdown.install()
                try:
                    yield state
                finally:
                    if engine.died:
                        process_context().engine_died.set()
                    await ours.close()

        router.lifespan_context = lifespan


class _Stop:
    """Ends the engine, then vLLM's HTTP server; called on the event loop.

    As vLLM does on a signal (`entrypoints/launchers/launcher.py`, `handle_shutdown`), whose
    handlers `api/shutdown.py` replaces.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="bmt-stop")

    async def _run(self) -> None:
        end_engine = partial(self._app.state.engine_client.shutdown, timeout=0)
        try:
            await asyncio.get_running_loop().run_in_executor(None, end_engine)
        finally:
            self._app.state.server.should_exit = True


def endpoints() -> MaskEndpoints:
    """Factory named by the entry point."""
    return MaskEndpoints()


def missing_entry_points() -> Iterable[str]:
    """Entry points that vLLM would not find; vLLM only logs that, and would serve without masks."""
    from importlib.metadata import entry_points

    for group, name in (
        ("vllm.general_plugins", GENERAL),
        ("vllm.endpoint_plugins", ENDPOINTS),
    ):
        if name not in {e.name for e in entry_points(group=group)}:
            yield f"{group}:{name}"
