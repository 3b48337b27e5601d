"""One replica without an engine, served over HTTP by the sources on PYTHONPATH.

Runs the sources of another revision too, so it uses only names that all revisions have. Arguments:
registry URL, cache folder. Prints one JSON line, {"port", "key", "key_id"}, with a new admin key
when it is ready. SIGTERM stops it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import uvicorn

try:
    from tests.support.replica import replica
except ModuleNotFoundError:  # revisions before tests/support
    from tests.server.api.conftest import replica


async def main(url: str, folder: str) -> None:
    async with replica(url, Path(folder)) as api:
        key, record = await api.app.state.bmt.keys.create(("infer", "upload", "admin"))
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(64)
            ready = {"port": listening.getsockname()[1], "key": key, "key_id": record.key_id}
            print(json.dumps(ready), flush=True)
            config = uvicorn.Config(api.app, log_level="critical", lifespan="off")
            await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
