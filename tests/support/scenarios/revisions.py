"""Replicas of this and other revisions of the repository, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import bmt_core
import httpx2

ROOT = Path(__file__).resolve().parents[3]
_SCRIPT = ROOT / "tests" / "support" / "children" / "replica_server.py"
_SOURCES = ("core", "trainer", "server", "client", ".")
# Response fields whose name differs between revisions, `zeros` carries the same information, and
# fields that older revisions do not have.
_RENAMED = (
    *("density", "sparsity", "same_chat_template", "expires", "retention", "published_by"),
    *("canary_of", "shadow_of"),
)


def export(revision: str, folder: Path) -> str:
    """Write the files of a revision into a folder. Returns a reason if that is impossible."""
    git = ["git", "-C", str(ROOT)]
    try:
        known = subprocess.run([*git, "cat-file", "-e", f"{revision}^{{commit}}"], check=False)
    except FileNotFoundError:
        return "git is not installed"
    if known.returncode:
        return f"revision {revision} is not in this checkout; set BMT_OLD_REVISION"
    folder.mkdir(parents=True)
    archive = subprocess.run([*git, "archive", revision], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return ""


class RevisionReplica:
    """Context manager: one replica process of the sources in `tree`, and a client with its key."""

    def __init__(self, tree: Path, url: str, folder: Path) -> None:
        path = os.pathsep.join(str(tree / source) for source in _SOURCES)
        self._process = subprocess.Popen(
            # -P: imports come from PYTHONPATH, never from the script's folder.
            [sys.executable, "-P", str(_SCRIPT), url, str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tree,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        ready = json.loads(self._process.stdout.readline() or "{}")
        assert ready, f"the replica of {tree} did not start"
        self.key: str = ready["key"]
        self.key_id: str = ready["key_id"]
        self._client = httpx2.Client(
            base_url=f"http://127.0.0.1:{ready['port']}",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=30,
        )

    def __enter__(self) -> RevisionReplica:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self._client.request(method, path, **options)

    def json(self, method: str, path: str, **options: Any) -> Any:
        """JSON of a successful request, without fields that were renamed between revisions."""
        response = self.request(method, path, **options)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return _without_renamed(response.json()) if response.content else None

    def publish(self, name: str, mask: bmt_core.Mask, **options: Any) -> Any:
        return self.json("PUT", f"/v1/masks/{name}", content=bmt_core.encode(mask), **options)

    def served_model(self, model: str) -> str:
        """Internal name of the version that a chat completion runs on."""
        answer = self.json("POST", "/v1/chat/completions", json={"model": model})
        served: str = answer["model"]
        return served

    def listing(self) -> dict[str, Any]:
        """All versions of all names as this replica sees them, by name."""
        names, after = {}, ""
        while True:
            page = self.json("GET", "/v1/masks", params={"after": after})
            for entry in page["data"]:
                versions = self.json(
                    "GET", f"/v1/masks/{entry['name']}/versions", params={"limit": 1000}
                )["data"]
                names[entry["name"]] = {"latest": entry, "versions": versions}
            if not page["has_more"]:
                return names
            after = page["last"]


def _without_renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_renamed(v) for k, v in value.items() if k not in _RENAMED}
    if isinstance(value, list):
        return [_without_renamed(v) for v in value]
    return value
