"""The `/metrics` route with several API processes on one port.

vLLM 0.32.0 turns on prometheus-client's multi-process mode with `--api-server-count` and then
exports only what that mode collects (`entrypoints/serve/instrumentator/metrics.py`): counters,
gauges and histograms, but no custom collectors (prometheus-client's documentation, "Multiprocess
Mode"). In that mode this route therefore takes the place of vLLM's.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def install_metrics_route(app: Any, registry: CollectorRegistry) -> CollectorRegistry:
    """Make `/metrics` export custom collectors too. Returns the registry for them.

    registry: the one that vLLM exports. REGISTRY with a single API process, and then vLLM's route
    stays; otherwise a new one at each call, with the collector of all processes' files.
    """
    if registry is REGISTRY:
        return registry

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    # Before vLLM's route. Not async, so that it reads the files of all processes in a thread.
    app.router.routes.insert(0, Route("/metrics", metrics, name="metrics"))
    return registry
