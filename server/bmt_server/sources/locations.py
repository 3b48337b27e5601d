"""Places that masks are imported from, as text and as objects.

::

    https://host[:port]/path        also http://, if the operator allows the host by that scheme
    hf://org/name[@revision]/file   a file of a model repository of the Hub
    s3://bucket/key
    sha256:<64 hex digits>          a file that a version of the key's own tenant has
    name@<digest>  name:alias       a version of the key's own tenant

`shown` is the text without a query: the query of a signed URL is a credential.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import bmt_core

from bmt_server.errors import BadRequest

FORMS = (
    "hf://org/name/file.bmt, s3://bucket/key, https://host/path, sha256:<file digest>, or a "
    "version here as name@digest or name:alias"
)
MAX_CHARACTERS = 4096
# Of a URL, of a redirect too: those of storage carry signatures.
_MAX_URL = 16384
# Servers decode a path once or twice.
_MAX_DECODED = 4
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,126}|\[[0-9a-f:.]{2,45}\]")
_REPOSITORY_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_UNSAFE = re.compile(r"[^\x21-\x7e]|[\\\"<>^`{|}]")
# Repositories of other kinds than models begin with them.
_KINDS = frozenset({"datasets", "spaces", "buckets", "models"})
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at a URL. host: in lower case, IPv6 in brackets; target: path and query."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def is_usual_port(self) -> bool:
        """True for the port that a URL leaves out."""
        return self.port == _PORTS[self.scheme]

    @property
    def shown(self) -> str:
        port = "" if self.is_usual_port else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model repository. revision: a branch, tag or commit; empty: the main branch."""

    repository: str
    file: str
    revision: str = ""

    @property
    def shown(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://{self.repository}{revision}/{self.file}"


@dataclass(frozen=True, slots=True)
class BucketFile:
    """An object of S3."""

    bucket: str
    key: str

    @property
    def shown(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of this registry, by its SHA-256."""

    digest: str

    @property
    def shown(self) -> str:
        return f"sha256:{self.digest}"


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version of this registry. ref: `name@digest` or `name:alias`."""

    ref: str

    @property
    def shown(self) -> str:
        return self.ref


Location = WebFile | HubFile | BucketFile | StoredFile | StoredVersion


def parse_location(text: str) -> Location:
    """The place that a text names. Raises BadRequest; the message has no query and no password."""
    if len(text) > MAX_CHARACTERS:
        raise _invalid(f"the source has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    scheme, found, rest = text.partition("://")
    if found and scheme.lower() in ("https", "http"):
        return parse_url(text)
    if scheme == "hf" and found:
        return _hub(rest)
    if scheme == "s3" and found:
        return _bucket(rest)
    kind, _, digest = text.partition(":")
    if kind == "sha256":
        try:
            return StoredFile(bmt_core.validate_digest(digest))
        except bmt_core.InvalidName as error:
            raise _invalid(str(error)) from None
    if set(text) & {"@", ":"} and "/" not in text:
        try:
            return StoredVersion(str(bmt_core.MaskRef.parse(text)))
        except bmt_core.InvalidName as error:
            raise _invalid(str(error)) from None
    if found:
        raise _invalid(f"sources of {scheme[:20]!r} are not imported")
    raise _invalid(f"{text[:200]!r} is no source, and paths on the server are never read")


def parse_url(text: str) -> WebFile:
    """A URL of http or https in one spelling. Raises BadRequest."""
    if len(text) > _MAX_URL:
        raise _invalid(f"the URL has {len(text)} characters; at most {_MAX_URL} are read")
    if _UNSAFE.search(text):
        raise _invalid("the URL has a character that must be percent-encoded")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _invalid("the URL cannot be parsed") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise _invalid("the URL has another scheme than https")
    if "@" in parts.netloc:
        raise _invalid("the URL has a user name or password; imports send none")
    if parts.fragment or text.endswith("#"):
        raise _invalid("the URL has a fragment; leave out what follows '#'")
    host = (parts.hostname or "").lower().removesuffix(".")
    if ":" in host:
        host = f"[{host}]"
    if not _HOST.fullmatch(host) or port == 0:
        raise _invalid("the URL has no valid host and port; write other alphabets in punycode")
    path = parts.path or "/"
    if not path.startswith("/") or _has_dots(path):
        raise _invalid("the path of the URL has '.' or '..'")
    return WebFile(scheme, host, port or _PORTS[scheme], path, parts.query)


def _hub(rest: str) -> HubFile:
    form = "write hf://org/name/file.bmt, with @revision after the name for another than main"
    if _UNSAFE.search(rest) or "?" in rest or "#" in rest:
        raise _invalid(f"the place on the Hub has characters that it cannot have; {form}")
    owner, _, rest = rest.partition("/")
    head, _, file = rest.partition("/")
    name, marked, revision = head.partition("@")
    revision = unquote(revision)
    if owner in _KINDS:
        raise _invalid(f"masks are imported from model repositories, and not from {owner}; {form}")
    if not _REPOSITORY_PART.fullmatch(owner) or not _REPOSITORY_PART.fullmatch(name):
        raise _invalid(f"the place on the Hub names no repository; {form}")
    if marked and (not re.fullmatch(r"[A-Za-z0-9._/-]{1,255}", revision) or _has_dots(revision)):
        raise _invalid(f"the place on the Hub has no valid revision; {form}")
    if not file or file.endswith("/") or "//" in file or _has_dots(file):
        raise _invalid(f"the place on the Hub names no file; {form}")
    return HubFile(f"{owner}/{name}", file, revision)


def _bucket(rest: str) -> BucketFile:
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise _invalid("the place names no bucket; write s3://bucket/key")
    if _UNSAFE.search(key) or "?" in key or "#" in key:
        raise _invalid("the key has a character that imports do not take; write s3://bucket/key")
    if not key or key.endswith("/") or "//" in f"/{key}" or _has_dots(key):
        raise _invalid("the place names no object; write s3://bucket/key")
    return BucketFile(bucket, key)


def _has_dots(path: str) -> bool:
    """True if a server may take a part of the path for '.' or '..'.

    Percent-encoded ones too, however often; and those with parameters (`..;x`), which servers of
    Java drop before they resolve the path.
    """
    for _ in range(_MAX_DECODED):
        if any(part.partition(";")[0] in (".", "..") for part in re.split(r"[/\\]", path)):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True


def _invalid(reason: str) -> BadRequest:
    return BadRequest(f"{reason}; sources are {FORMS}", code="source_invalid", param="source")
