"""Where `/metrics` reads from: this process, or with several API processes the files of all.

prometheus-client's multi-process mode knows counters, gauges and histograms, and no collector of
our own (its documentation, "Multiprocess Mode"); vLLM 0.32.0 turns it on with
`--api-server-count` and then serves only what that mode collects
(`entrypoints/serve/instrumentator/metrics.py`). So the route is ours there.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def install(app: Any, registry: CollectorRegistry) -> CollectorRegistry:
    """Have the app's `/metrics` tell what is registered here as well.

    registry: what vLLM scrapes: REGISTRY, or one made anew at each call, with the collector of
    all processes' files. Returns the one to register with.
    """
    if registry is REGISTRY:
        return registry

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    # Ahead of vLLM's own. Not async: it reads the files of all processes, in a thread.
    app.router.routes.insert(0, Route("/metrics", metrics, name="metrics"))
    return registry
