"""Servers of files on loopback: plain HTTP or HTTPS, an S3 bucket, and a Hub of repositories."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SHA = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Files of a mapping by path, with byte ranges; `asked` records each request."""

    protocol_version = "HTTP/1.1"
    files: Mapping[str, bytes]
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    @property
    def route(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    @property
    def query(self) -> dict[str, str]:
        return {
            k: v[0] for k, v in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
        }

    def answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.respond()

    def respond(self) -> None:
        self.send_file(self.route)

    def send_file(self, name: str, headers: Mapping[str, str] | None = None) -> None:
        data = self.files.get(name)
        if data is None:
            self.send(404, b"not found")
            return
        etag = hashlib.sha1(data).hexdigest()
        first, status, extra = (
            0,
            200,
            {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **(headers or {})},
        )
        wanted = self.headers.get("Range")
        part = data
        if wanted and self.command == "GET":
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first = int(begin)
            last = min(int(end) if end else len(data) - 1, len(data) - 1)
            part, status = data[first : last + 1], 206
            extra["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.send(status, part, extra)

    def send_json(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = json.dumps(value).encode()
        self.send(status, data, {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class Bucket(Handler):
    """The part of S3 that reading needs: list, head and get, with the bucket in the path."""

    def respond(self) -> None:
        bucket, _, key = self.route.partition("/")
        if key or self.command == "HEAD":
            self.send_file(self.route, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})
            return
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        keys = [n.partition("/")[2] for n in sorted(self.files) if n.startswith(f"{bucket}/")]
        found, folders = [], []
        for name in (k for k in keys if k.startswith(prefix)):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.append(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                found.append(name)
        contents = "".join(
            f"<Contents><Key>{escape(n)}</Key><Size>{len(self.files[f'{bucket}/{n}'])}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for n in found
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>"
            for f in dict.fromkeys(folders)
        )
        self.send(
            200,
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}{common}"
            "</ListBucketResult>".encode(),
            {"Content-Type": "application/xml"},
        )


class Hub(Handler):
    """The routes of huggingface.co that reading a data set's files needs; one commit, SHA.

    files: by REPOSITORY/PATH, where a repository is OWNER/NAME. A revision other than main, SHA
    and those in `revisions` does not exist.
    """

    revisions: Mapping[str, str] = {"main": SHA, SHA: SHA}

    def respond(self) -> None:
        parts = self.route.split("/")
        if parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self.send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _names(self, repository: str) -> list[str]:
        start = f"{repository}/"
        return sorted(n.removeprefix(start) for n in self.files if n.startswith(start))

    def _known(self, repository: str, revision: str) -> str | None:
        if not self._names(repository):
            self.send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in self.revisions:
            self.send_json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return self.revisions[revision]
        return None

    def _api(self, repository: str, rest: list[str]) -> None:
        what = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        sha = self._known(repository, revision)
        if sha is None:
            return
        entries = [self._entry(repository, n) for n in self._names(repository)]
        if what == "revision":
            siblings = [{"rfilename": n} for n in self._names(repository)]
            self.send_json(
                {"_id": "1", "id": repository, "sha": sha, "private": False, "gated": False}
                | {"disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
            )
        elif what == "tree":
            below = "/".join(rest[2:])
            start = f"{below}/" if below else ""
            self.send_json([e for e in self._all(entries) if e["path"].startswith(start)])
        elif what == "paths-info":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            sent = json.loads(body) if body.startswith("{") else parse_qs(body)
            wanted = [p.strip("/") for p in sent["paths"]]
            self.send_json([e for e in self._all(entries) if e["path"] in wanted])
        else:
            self.send_json({"error": "not found"}, 404)

    def _all(self, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        folders = {
            "/".join(e["path"].split("/")[:i])
            for e in files
            for i in range(1, e["path"].count("/") + 1)
        }
        return [{"type": "directory", "oid": "d", "size": 0, "path": f} for f in folders] + files

    def _entry(self, repository: str, name: str) -> dict[str, Any]:
        data = self.files[f"{repository}/{name}"]
        return {
            "type": "file",
            "oid": hashlib.sha1(data).hexdigest(),
            "size": len(data),
            "path": name,
        }

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        sha = self._known(repository, revision)
        if sha is None:
            return
        if name not in self._names(repository):
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            self.send_json({"error": "Entry not found"}, 404, headers)
            return
        self.send_file(f"{repository}/{name}", {"X-Repo-Commit": sha})


@contextmanager
def serving(
    kind: type[Handler], files: Mapping[str, bytes], certificate: Path | None = None, **more: Any
) -> Iterator[tuple[str, list[str]]]:
    """URL of a server of the files, and the list of what it is asked.

    certificate: from `self_signed`, for HTTPS.
    """
    asked: list[str] = []
    handler = type(kind.__name__, (kind,), {"files": files, "asked": asked, **more})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(path: Path) -> Path:
    """Write a key and its certificate for 127.0.0.1 to `path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
