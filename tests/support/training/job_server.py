"""A server of fine-tuning jobs for a tiny checkpoint, over HTTP, without an engine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import bmt_core
import openai
import uvicorn
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

from tests.support.replica import Api, replica

TENANTS = ("default", "other")


@dataclass
class JobServer:
    """keys: of tenants, with the scope `upload` and `infer`; worker_key: of scope `train`."""

    api: Api
    url: str
    model: Path
    keys: dict[str, str]
    worker_key: str

    def client(self, tenant: str = "default") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self.keys[tenant], base_url=f"{self.url}/v1", max_retries=0
        )

    async def worker(self, folder: Path, *flags: str) -> asyncio.subprocess.Process:
        """`bmt-train worker` as a process, whose jobs are in `folder`."""
        command = [sys.executable, "-m", "bmt_trainer", "worker", "--server", self.url]
        # A relative folder of the model, which trainings read from folders of their own.
        command += ["--model", self.model.name, "--folder", str(folder), "--device", "cpu"]
        return await asyncio.create_subprocess_exec(
            *(*command, "--poll-seconds", "0.2", *flags),
            cwd=self.model.parent,
            env={**os.environ, "BMT_API_KEY": self.worker_key, "OMP_NUM_THREADS": "1"},
        )


@asynccontextmanager
async def job_server(registry: str, folder: Path, model: Path) -> AsyncIterator[JobServer]:
    """A replica for `model` on a port of its own."""
    store = RegistryConnection(registry)
    keys = ApiKeyStore(store)
    made = {t: await keys.create(("infer", "upload"), tenant=t) for t in TENANTS}
    worker = await keys.create(("train",))
    await store.close()
    assert worker is not None
    changes = {
        "fingerprint": bmt_core.fingerprint(model),
        "gates": bmt_core.geometry(model),
        "files_url": (folder / "files").as_uri(),
        # Of so small a model many gates flip in many steps.
        "max_sparsity": 1.0,
    }
    async with replica(registry, folder / "cache", **changes) as api:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(64)
            config = uvicorn.Config(api.app, log_level="critical", lifespan="off")
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve(sockets=[listening]))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            secrets = {tenant: key[0] for tenant, key in made.items() if key is not None}
            try:
                yield JobServer(api, url, model, secrets, worker[0])
            finally:
                server.should_exit = True
                await task
