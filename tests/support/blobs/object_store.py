"""An S3 server on loopback, moto's, as a process; it keeps objects on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.http.ports import free_port

# What a client of it has in its environment.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-log-may-show",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
START_S = 60


class S3:
    """`start` makes the bucket `masks`; a killed server has lost its objects' names."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self.process: subprocess.Popen | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, port: int = 0) -> dict[str, str]:
        """For clients of it. port: of a proxy before it."""
        endpoint = f"http://127.0.0.1:{port}" if port else self.endpoint
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "s3.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-p", str(self.port)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Objects go to files at once, not to memory.
                env={
                    **os.environ,
                    "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "1024",
                    "TMPDIR": str(self._folder),
                },
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                if httpx.put(f"{self.endpoint}/masks", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert self.process.poll() is None, (self._folder / "s3.log").read_text()
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.1)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
