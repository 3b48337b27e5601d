"""Program that ends once the server is ready: `python -m bmt_server.training.ready HOST PORT`.

A program, for while a server starts its engine it forks, and a thread that asks for addresses then
may hold a lock of the C library that the fork never gets back.
"""

from __future__ import annotations

import http.client
import sys
import time

_PAUSE_S, _ANSWER_S = 1.0, 5.0


def main(host: str, port: int) -> None:
    """Return once the server at this address is ready."""
    while not _ready(host, port):
        time.sleep(_PAUSE_S)


def _ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
