"""A bmt-server without a model: the routes of the registry over a real socket, in a dict.

The tests that need faults (answers of any status, dropped connections, lies) script them here;
`test_against_server.py` runs the same client against the real router.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import bmt_core

KEY = "bmt_test-key-0123456789abcdef"


@dataclass
class Fault:
    """One scripted answer in place of the real one."""

    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": {"message": "try later", "code": "registry_down"}}'
    drop: bool = False  # close the connection instead of answering
    after: bool = False  # do the work first, so that only the answer is lost


class Problem(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class FakeServer:
    """State of the registry, and what was asked of it."""

    def __init__(self) -> None:
        self.key: str | None = KEY
        self.scopes = {"infer", "upload", "admin"}
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.latest: dict[str, str] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.blobs: dict[str, bytes] = {}
        self.revs: dict[str, int] = {}
        self.faults: list[Fault | None] = []  # None: no fault
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.extra: dict[str, Any] = {"field_of_a_newer_server": {"x": 1}}
        self.page_limit = 1000
        self.shows_key = False  # servers of an earlier build do not
        self.chat: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None
        # The text of an answer that is not streamed, by the request's fields.
        self.reply: Callable[[dict[str, Any]], str] | None = None
        self.url = ""

    # What the handler calls: (method, path, query, headers, body) -> (status, JSON or bytes)
    def answer(
        self, method: str, path: str, query: dict[str, list[str]], headers: Any, body: bytes
    ) -> tuple[int, Any]:
        if path == "/readyz":
            return 200, {"ready": True}
        self._authorise(headers)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        match (method, *parts):
            case ("GET", "v1", "me") if self.shows_key:
                base = {"names": ["base"], "fingerprint": "ab" * 32}
                key = {"key_id": "k1", "tenant": "default", "scopes": sorted(self.scopes)}
                return 200, {"object": "key", **key, "base": base, "limits": {"max_n": 64}}
            case ("GET", "v1", "usage"):
                return 200, {"tenant": "default", "start": "2026-11-01", "end": "2026-11-30"}
            case ("GET", "v1", "limits"):
                defaults = {"keys": {}, "tenants": {"versions": 9}}
                return 200, {"defaults": defaults, "keys": {}, "tenants": {}}
            case ("PUT", "v1", "limits", "tenants", _):
                return 200, json.loads(body)
            case ("DELETE", "v1", "limits", "tenants", _):
                return 204, None
            case ("GET", "v1", "models"):
                entries = [{"id": "base", "object": "model", "parent": None}]
                entries += [
                    {"id": name, "object": "model", "parent": "base"} for name in self.latest
                ]
                return 200, {"object": "list", "data": entries}
            case ("POST", "v1", "chat", "completions"):
                return 200, self._chat(json.loads(body))
            case ("GET", "v1", "masks"):
                return 200, self._page(query)
            case ("PUT", "v1", "masks", name):
                return self._put(name, query, headers, body)
            case ("GET", "v1", "masks", ref):
                return 200, self._shown(self._find(ref))
            case ("DELETE", "v1", "masks", name):
                self._find(name)
                del self.versions[name], self.latest[name]
                return 204, None
            case ("GET", "v1", "masks", name, "versions"):
                self._find(name)
                listed = [self._shown(v) for v in reversed(self.versions[name])]
                return 200, {"object": "list", "data": listed}
            case ("POST", "v1", "masks", name, "prune"):
                self._find(name)
                old = self.versions[name][: -int(query["keep_last"][0])]
                if "dry_run" not in query:
                    self.versions[name] = self.versions[name][len(old) :]
                return 200, {"removed": [{"digest": version["digest"]} for version in old]}
            case ("DELETE", "v1", "masks", name, "versions", digest):
                version = self._find(f"{name}@{digest}")
                if names := self._shown(version)["aliases"]:
                    raise Problem(412, "in_use", f"it is {name}:{names[0]}; move that alias first")
                self.versions[name].remove(version)
                return 204, None
            case ("PUT", "v1", "masks", name, "aliases", alias):
                return 200, self._put_alias(name, alias, headers, json.loads(body))
            case ("DELETE", "v1", "masks", name, "aliases", alias):
                if self.aliases.pop((name, alias), None) is None:
                    raise Problem(404, "alias_not_found", f"{name} has no alias {alias}")
                return 204, None
            case ("PUT" | "DELETE", "v1", "masks", ref, "pin"):
                version = self._find(ref)
                version["pinned"] = method == "PUT"
                return (200, self._shown(version)) if version["pinned"] else (204, None)
            case ("GET", "v1", "blobs", digest) if digest in self.blobs:
                return 200, self.blobs[digest]
        raise Problem(404, "not_found", f"nothing at {method} {path}")

    def _authorise(self, headers: Any) -> None:
        if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}":
            raise Problem(401, "unauthorized", f"bad key {headers.get('Authorization')}")

    def _find(self, ref: str) -> dict[str, Any]:
        parsed = bmt_core.MaskRef.parse(ref)
        wanted = parsed.digest_prefix
        if wanted is None:
            wanted = self.latest.get(parsed.name)
            if parsed.alias not in (None, "latest"):
                wanted = self.aliases.get((parsed.name, parsed.alias))
        for version in reversed(self.versions.get(parsed.name, [])):
            if wanted and version["digest"].startswith(wanted):
                return version
        raise Problem(404, "mask_not_found", f"no mask {ref}")

    def _shown(self, version: dict[str, Any]) -> dict[str, Any]:
        name, digest = version["name"], version["digest"]
        names = ["latest"] if self.latest.get(name) == digest else []
        names += sorted(a for (n, a), d in self.aliases.items() if n == name and d == digest)
        return {**version, "aliases": names, **self.extra}

    def _page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        limit = min(int(query.get("limit", ["100"])[0]), self.page_limit)
        after = query.get("after", [""])[0]
        names = sorted(name for name in self.latest if name > after)
        data = [
            {**self._shown(self._find(name)), "versions": len(self.versions[name])}
            for name in names[:limit]
        ]
        return {"object": "list", "data": data, "has_more": len(names) > limit}

    def _put(
        self, name: str, query: dict[str, list[str]], headers: Any, body: bytes
    ) -> tuple[int, Any]:
        if "upload" not in self.scopes:
            raise Problem(403, "scope", "this key may not upload")
        if "Content-Length" not in headers:
            raise Problem(411, "length_required", "send a Content-Length")
        sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if headers.get("Content-Digest") != f"sha-256=:{sha256}:":
            raise Problem(400, "digest_mismatch", "the body is not what its digest says")
        current = self.latest.get(name)
        self._compare(current, headers)
        mask = bmt_core.decode(body)
        outcome = "created"
        if current == mask.digest:
            outcome = "unchanged"
        elif known := [v for v in self.versions.get(name, []) if v["digest"] == mask.digest]:
            outcome, self.latest[name] = "moved", mask.digest
            self.revs[name] = known[0]["rev"] = self.revs[name] + 1
        else:
            self._store(name, mask, body, current)
        for alias in query.get("alias", []):
            self.aliases[name, alias] = mask.digest
        shown = {**self._shown(self._find(name)), "outcome": outcome}
        return (201 if outcome == "created" else 200), shown

    def _store(self, name: str, mask: bmt_core.Mask, body: bytes, parent: str | None) -> None:
        file_digest = hashlib.sha256(body).hexdigest()
        rev = self.revs[name] = self.revs.get(name, 0) + 1
        self.blobs[file_digest] = body
        self.latest[name] = mask.digest
        self.versions.setdefault(name, []).append(
            {
                "name": name,
                "tenant": "default",
                "digest": mask.digest,
                "file_digest": file_digest,
                "rev": rev,
                "id": sum(self.revs.values()),
                "created": "2026-11-01T10:00:00Z",
                "bytes": len(body),
                "zeros": mask.zeros,
                "sparsity": mask.sparsity,
                "base": {"model_id": mask.base.model_id, "fingerprint": mask.base.fingerprint},
                "parent": parent,
                "metadata": dict(mask.metadata),
                "model": f"{name}@{mask.digest[:12]}",
                "pinned": False,
            }
        )

    def _put_alias(
        self, name: str, alias: str, headers: Any, target: dict[str, Any]
    ) -> dict[str, Any]:
        self._find(name)
        if "rev" in target:
            found = next((v for v in self.versions[name] if v["rev"] == target["rev"]), None)
            if found is None:
                raise Problem(404, "version_not_found", f"{name} has no rev {target['rev']}")
        else:
            found = self._find(f"{name}@{target['digest']}")
        is_latest = alias == "latest"
        self._compare(self.latest[name] if is_latest else self.aliases.get((name, alias)), headers)
        if is_latest:
            self.latest[name] = found["digest"]
        else:
            self.aliases[name, alias] = found["digest"]
        return self._shown(found)

    def _compare(self, current: str | None, headers: Any) -> None:
        wanted = headers.get("If-Match")
        if wanted is not None and wanted != f'"{current}"':
            raise Problem(412, "conflict", f"the current version is {current}")
        if headers.get("If-None-Match") == "*" and current is not None:
            raise Problem(412, "conflict", f"the name exists, at {current}")

    def _chat(self, body: dict[str, Any]) -> Any:
        model = body["model"]
        if self.reply is not None:
            message = {"role": "assistant", "content": self.reply(body)}
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
            return {"id": "c", "object": "chat.completion", "created": 1, "model": model} | {
                "choices": [choice]
            }
        if model != "base":
            model = self._find(model)["model"]
        words = f"You said {body['messages'][-1]['content']}".split(" ")
        common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
        chunks: list[dict[str, Any]] = [
            {"index": 0, "delta": {"content": word + " "}, "finish_reason": None} for word in words
        ]
        chunks.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        events: list[Any] = [{**common, "choices": [choice]} for choice in chunks]
        usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 9}
        events.append({**common, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return "".join([*lines, "data: [DONE]\n\n"]).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body of an answer in one packet
    fake: FakeServer

    def _handle(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.fake.requests.append((self.command, self.path, dict(self.headers)))
        fault = self.fake.faults.pop(0) if self.fake.faults else None
        status, content = 0, None
        if fault is None or fault.after:
            try:
                status, content = self.fake.answer(
                    self.command, url.path, parse_qs(url.query), self.headers, body
                )
            except Problem as problem:
                status = problem.status
                content = {"error": {"message": str(problem), "code": problem.code}}
            except bmt_core.BmtError as error:
                status, content = 422, {"error": {"message": str(error), "code": error.code}}
        if fault is None:
            self._send(status, {}, content)
        elif fault.drop:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self._send(fault.status, fault.headers, fault.body)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _handle  # noqa: N815

    def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("X-Request-Id", "req-1")
        stream = isinstance(content, bytes) and content.startswith(b"data: ")
        if "Content-Type" not in headers:
            self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(fake: FakeServer, tls: ssl.SSLContext | None = None) -> Iterator[FakeServer]:
    """Run `fake` on a free port of the loopback, in TLS if given; its `url` is set."""
    handler = type("Bound", (Handler,), {"fake": fake})
    with listening(handler, tls) as url:
        fake.url = url
        yield fake


class QuietServer(ThreadingHTTPServer):
    """A server without lines of clients that are gone: a test would read them as a command's."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Run a handler of requests on a free port of the loopback; yields its address."""
    with QuietServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()
