"""A replica of fine-tuning jobs without an engine, on a given port, that a scenario may kill.

Arguments: registry URL, folder, checkpoint, port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import bmt_core
import uvicorn

from tests.support.replica import replica


async def main(url: str, folder: Path, model: Path, port: int) -> None:
    changes = {
        "fingerprint": bmt_core.fingerprint(model),
        "gates": bmt_core.geometry(model),
        "files_url": (folder / "files").as_uri(),
        # Of so small a model many gates flip in many steps.
        "max_sparsity": 1.0,
    }
    async with replica(url, folder / "cache", **changes) as api:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", port))
            listening.listen(64)
            config = uvicorn.Config(api.app, log_level="critical", lifespan="off")
            await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
