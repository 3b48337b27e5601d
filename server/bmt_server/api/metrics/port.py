"""`/metrics` on a port of its own, without keys: who reaches it is the network's matter.

Plain HTTP by prometheus-client's server, in a thread of one API process. Any API process has the
figures of all of them (`multiprocess.py`), so the first one that comes opens the port.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from bmt_server.settings import SettingsError

_TAKEN = "metrics-port"


class MetricsPort:
    """The port from construction to `close`, in the process of the server that is first.

    registry: whose metrics it serves. folder: of this server's processes, gone when it ends. Raises
    SettingsError if the address is taken or is none.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int, folder: Path) -> None:
        self._server: tuple[WSGIServer, Thread] | None = None
        self._mark = folder / _TAKEN
        if not port:
            return
        try:
            os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        try:
            self._server = start_http_server(port, host or "0.0.0.0", registry)
        except OSError as error:
            self._mark.unlink()
            raise _refused(host, port, error) from None
        _serve_metrics_alone(self._server[0])

    def close(self) -> None:
        """Close the port."""
        server, self._server = self._server, None
        if server is not None:
            server[0].shutdown()
            server[0].server_close()
            server[1].join(timeout=1)
            with suppress(FileNotFoundError):
                self._mark.unlink()


def check_port(host: str, port: int) -> None:
    """Raise SettingsError if the port cannot be opened, before a model is loaded for nothing."""
    if not port:
        return
    try:
        family = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host or "0.0.0.0", port), family=family).close()
    except OSError as error:
        raise _refused(host, port, error) from None


def _refused(host: str, port: int, error: OSError) -> SettingsError:
    return SettingsError(
        f"metrics_port (--metrics-port) is {port}, which cannot be opened on "
        f"{host or 'all addresses'}: {error.strerror or error}; choose another"
    )


def _serve_metrics_alone(server: WSGIServer) -> None:
    """Answer every path but /metrics by 404: prometheus-client's app has the figures at all."""
    figures = server.get_app()
    assert figures is not None

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "").rstrip("/") != "/metrics":
            start_response("404 Not Found", [("content-type", "text/plain")])
            return [b"not found; the metrics are at /metrics\n"]
        served: Iterable[bytes] = figures(environ, start_response)
        return served

    server.set_app(app)
