"""Exit 0 when the server in this container is alive; of HEALTHCHECK.

    python healthcheck.py [PORT]

With --ssl-certfile it speaks TLS alone, for a name that is not 127.0.0.1, so certificates are not
verified here.
"""

import http.client
import ssl
import sys

SECONDS = 2


def alive(port: int) -> bool:
    """True where /livez answers 200, by TLS or without."""
    for connection in (
        http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS),
        http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=SECONDS, context=ssl._create_unverified_context()
        ),
    ):
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    sys.exit(not alive(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
