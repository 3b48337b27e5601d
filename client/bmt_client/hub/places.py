"""Places of masks on the Hub: `hf://org/name[@revision][/file.bmt]`.

The grammar is that of `bmt-client import`, where the file must be named, and that of
huggingface_hub's own `hf://` addresses of model repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from bmt_client._errors import UsageError

SCHEME = "hf://"
FORM = "hf://org/name, hf://org/name@revision or hf://org/name/file.bmt"
_MAX_CHARACTERS = 1024
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}", re.ASCII)
# Revisions with a '/' that the Hub itself writes without an escape.
_SPECIAL = re.compile(r"refs/(?:pr/[0-9]+|convert/[A-Za-z0-9_.-]+)(?=/|$)", re.ASCII)
# Repositories of other kinds begin with them.
_OTHER_KINDS = frozenset({"datasets", "spaces", "buckets", "kernels"})


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A model repository of the Hub, and a file in it.

    repository: `org/name`; revision: a branch, tag or commit, None for the main branch; file: its
    path in the repository, None for the only mask there. `str()` gives the address.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision.replace('/', '%2F')}"
        return f"{SCHEME}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")

    def at(self, *, file: str, revision: str | None = None) -> HubPlace:
        """Another file of the repository, of the same revision if none is given."""
        return HubPlace(self.repository, revision or self.revision, file)

    @property
    def name(self) -> str:
        """The file's name, or that of the repository."""
        return (self.file or self.repository).rpartition("/")[2]


def is_place(text: str) -> bool:
    """True for text that begins as an address of the Hub does."""
    return text[: len(SCHEME)].lower() == SCHEME


def parse_place(text: str) -> HubPlace:
    """The place that an address names. Raises UsageError."""
    if not is_place(text):
        raise _invalid(text, "it does not begin with hf://")
    if len(text) > _MAX_CHARACTERS:
        raise _invalid(text, f"it has {len(text)} characters; at most {_MAX_CHARACTERS} are read")
    rest = text[len(SCHEME) :]
    kind, _, behind = rest.partition("/")
    if kind in _OTHER_KINDS:
        raise _invalid(text, f"it names no repository of models but one of {kind}")
    if kind == "models" and "/" in behind:
        rest = behind
    owner, _, rest = rest.partition("/")
    name = re.split("[/@]", rest, maxsplit=1)[0]
    repository, rest = f"{owner}/{name}", rest[len(name) :]
    if not (_PART.fullmatch(owner) and _PART.fullmatch(name)) or re.search(
        r"--|\.\.|\.git$", repository
    ):
        raise _invalid(text, f"{repository!r} is no repository of the form org/name")
    revision: str | None = None
    if rest.startswith("@"):
        revision, rest = _revision(text, rest[1:])
    return HubPlace(repository, revision, _file(text, rest))


def _revision(text: str, rest: str) -> tuple[str, str]:
    """The revision at the beginning of `rest`, and what follows it."""
    special = _SPECIAL.match(rest)
    written = special.group() if special else rest.partition("/")[0]
    revision = unquote(written)
    if not _REVISION.fullmatch(revision) or re.search(r"\.\.|//|/$", revision):
        raise _invalid(text, f"{written!r} is no revision (a branch, tag or commit)")
    return revision, rest[len(written) :]


def _file(text: str, rest: str) -> str | None:
    """The path of a file in what follows the repository; None without one."""
    path = rest.removeprefix("/")
    if not path:
        return None
    if not path.isprintable() or "\\" in path or {"", ".", ".."} & set(path.split("/")):
        raise _invalid(text, f"{path!r} is no path of a file")
    return path


def _invalid(text: str, reason: str) -> UsageError:
    return UsageError(
        f"{text[:200]!r} is no place of the Hub: {reason}; write {FORM}", code="hub_place"
    )
