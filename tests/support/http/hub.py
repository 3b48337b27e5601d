"""A small Hugging Face Hub on loopback, with the routes that pushes and pulls use.

Repositories of models with branches and commits, tokens with rights, gates, files by git or LFS.
The bodies are those of the routes of huggingface_hub (Apache-2.0), which is the client under test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_loopback_writer"
READER = "hf_loopback_reader"
_LFS_BYTES = 512  # a file with a zero byte in its sample, or one that is larger, is stored by LFS


@dataclass
class Repository:
    """A repository: commits by id, each with its files; branches and tags by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """Add files on top of a branch; returns the commit's id."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = {**before, **files}
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch or commit. Raises Refused."""
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return self.commits[oid]


class Refused(Exception):
    """An answer of the Hub that is an error. code: of its header X-Error-Code."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Hub:
    """State of the Hub. fail: raises Refused for (method, path), to stand for its faults."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.writers = {TOKEN: "acme"}
        self.readers = {READER: "guest"}
        self.requests: list[tuple[str, str, str]] = []  # method, path, authorization
        self.fail: Callable[[str, str], None] = lambda method, path: None
        self.sizes: dict[str, int] = {}  # stated for a file in place of its own
        self.sent = 0  # bytes of bodies
        self.url = ""
        self.cache = Path()  # of huggingface_hub, set by `use`

    def add(self, name: str, files: dict[str, bytes] | None = None, **kind: bool) -> Repository:
        """A repository with a first commit of `files`."""
        made = self.repositories[name] = Repository(**kind)
        made.commit("main", {".gitattributes": b"", **(files or {})}, "initial commit")
        return made

    def repository(self, name: str, token: str) -> Repository:
        """The repository as the owner of a token sees it. Raises Refused."""
        known = token in self.writers or token in self.readers
        if token and not known:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        found = self.repositories.get(name)
        if found is None or (found.private and not known):
            raise Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        return found

    def writer(self, name: str, token: str) -> None:
        if token not in self.writers:
            raise Refused(403 if token in self.readers else 401, "", "You need the right to write")
        if name.partition("/")[0] != self.writers[token]:
            raise Refused(403, "", "You may not write in this namespace")

    # Routes; each returns status, JSON or bytes, and header fields.

    def create(self, body: dict[str, Any], token: str) -> Any:
        name = f"{body['organization']}/{body['name']}"
        self.writer(name, token)
        if name in self.repositories:
            raise Refused(409, "", "You already created this model repo")
        self.add(name, private=body.get("visibility") == "private")
        return {"url": f"{self.url}/{name}"}

    def info(self, name: str, revision: str, token: str) -> Any:
        found = self.repository(name, token)
        files = found.files(revision)
        siblings = []
        for path, data in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": self.sizes.get(path, len(data))}
            if _is_lfs(data):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": entry["size"], "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": name,
            "modelId": name,
            "sha": found.branches.get(revision, revision),
            "private": found.private,
            "gated": "manual" if found.gated else False,
            "siblings": siblings,
        }

    def preupload(self, name: str, body: dict[str, Any], token: str) -> Any:
        self.writer(name, token)
        files = []
        for file in body["files"]:
            lfs = _is_lfs(base64.b64decode(file["sample"])) or file["size"] > 10_000_000
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        for entry in files:
            data = self.repositories[name].files().get(entry["path"])
            if data is not None:
                entry["oid"] = (
                    hashlib.sha256(data).hexdigest()
                    if entry["uploadMode"] == "lfs"
                    else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                )
        return {"files": files}

    def batch(self, name: str, body: dict[str, Any], token: str) -> Any:
        self.writer(name, token)
        objects = []
        for entry in body["objects"]:
            made: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.objects:
                made["actions"] = {"upload": {"href": f"{self.url}/storage/{entry['oid']}"}}
            objects.append(made)
        return {"transfer": "basic", "objects": objects}

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]], token: str) -> Any:
        self.writer(name, token)
        found = self.repository(name, token)
        if branch not in found.branches:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", found.branches[branch]) != found.branches[branch]:
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = {}
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                data = self.objects[line["value"]["oid"]]
                assert line["value"]["size"] == len(data)
                files[line["value"]["path"]] = data
        oid = found.commit(branch, files, header["summary"])
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}


def _is_lfs(data: bytes) -> bool:
    return b"\0" in data[:_LFS_BYTES]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def __getattr__(self, name: str) -> Any:
        # HEAD, POST and PUT: the routes tell methods apart.
        if name in ("do_HEAD", "do_POST", "do_PUT"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, *args: Any) -> None:
        """No lines on stderr."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, path, token))
        try:
            self.hub.fail(self.command, path)
            found = self._route(path, body, token)
        except Refused as error:
            fields = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send(error.status, json.dumps({"error": error.message}).encode(), fields)
            return
        if isinstance(found, tuple):
            self._send(*found)
        else:
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _route(self, path: str, body: bytes, token: str) -> Any:
        hub, parts = self.hub, path.strip("/").split("/")
        if parts[0] == "storage":
            if self.command == "PUT":
                assert hashlib.sha256(body).hexdigest() == parts[1]
                hub.objects[parts[1]] = body
            return 200, hub.objects[parts[1]], {}
        if parts[:2] == ["api", "repos"]:
            return hub.create(json.loads(body), token)
        if parts[:2] == ["api", "validate-yaml"]:
            front = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(front), dict)
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return hub.batch("/".join(parts[:2]).removesuffix(".git"), json.loads(body), token)
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:], body, token)
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), unquote(parts[3]), "/".join(parts[4:]), token)
        raise Refused(404, "", "Not Found")

    def _model(self, name: str, rest: list[str], body: bytes, token: str) -> Any:
        hub, revision = self.hub, unquote(rest[1]) if len(rest) > 1 else "main"
        if not rest or rest[0] == "revision":
            return hub.info(name, revision, token)
        if rest[0] == "tree":
            files = hub.repository(name, token).files(revision).items()
            kinds = {"type": "file", "oid": "0" * 40}
            return [{**kinds, "path": path, "size": len(data)} for path, data in files]
        if rest[0] == "preupload":
            return hub.preupload(name, json.loads(body), token)
        if rest[0] == "branch":
            hub.writer(name, token)
            found = hub.repository(name, token)
            found.branches[revision] = found.branches["main"]
            return {}
        if rest[0] != "commit":
            raise Refused(404, "", "Not Found")
        lines = [json.loads(line) for line in body.splitlines()]
        return hub.commit(name, revision, lines, token)

    def _file(self, name: str, revision: str, file: str, token: str) -> Any:
        found = self.hub.repository(name, token)
        if found.gated and token not in self.hub.writers:
            raise Refused(403, "GatedRepo", "Access to this model is restricted")
        data = found.files(revision).get(unquote(file))
        if data is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(data).hexdigest()
        fields = {"ETag": f'"{etag}"', "X-Repo-Commit": found.branches.get(revision, revision)}
        if not _is_lfs(data):
            return 200, data, fields
        self.hub.objects[etag] = data
        fields |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{etag}"'}
        # On another host, as the Hub's storage is: no token may go there.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        return 302, b"", {**fields, "Location": f"{storage}/storage/{etag}"}

    def _send(self, status: int, data: bytes, fields: dict[str, str]) -> None:
        if status == 200 and (asked := self.headers.get("Range")) is not None:
            first, last = asked.removeprefix("bytes=").split("-")
            status, data = 206, data[int(first) : int(last) + 1 if last else None]
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.hub.sent += len(data)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a port of loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path, token: str | None = TOKEN) -> None:
    """Point huggingface_hub, in this process and in those it starts, at the Hub.

    The library reads its environment when it is imported, so its constants are set as well.
    """
    hub.cache = folder / "cache"
    for name, value in (
        ("HF_ENDPOINT", hub.url),
        ("HF_HUB_CACHE", str(hub.cache)),
        ("HF_TOKEN_PATH", str(folder / "token")),
        # Xet's storage is no part of this Hub.
        ("HF_HUB_DISABLE_XET", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
